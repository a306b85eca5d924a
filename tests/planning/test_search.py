"""The search: fast, complete over what divides, within memory, and ranked with reasons."""

from __future__ import annotations

import time

import optax
import pytest
from tiny import decoder

import hybrid_jax as hj
from hybrid_jax.config.model import preset
from hybrid_jax.errors import UserError
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.search import Problem, layouts, search


def problem(model="llama2-7b", devices="v5p:4x4x4", batch=128, length=4096) -> Problem:
    return Problem(preset(model), Cluster.of(devices), batch, length)


def test_a_thousand_devices_and_70b_within_seconds():
    start = time.process_time()
    plans = search(problem("llama2-70b", "v5p:8x8x16", 1024))
    assert time.process_time() - start < 10  # about 1.5 s where nothing else runs
    assert len(plans) >= 20
    assert plans[0].strategy.num_devices == 1024


def test_plans_that_fit_come_first_and_by_time():
    plans = search(problem(devices="v5e:8x8"))
    fitting = [plan for plan in plans if plan.time is not None]
    assert len(fitting) > 0
    assert fitting == plans[: len(fitting)]
    times = [plan.time.total for plan in fitting if plan.time]
    assert times == sorted(times)
    room = Cluster.of("v5e:8x8").chip.hbm_bytes
    assert all((plan.memory.total <= room) == (plan.time is not None) for plan in plans)


def test_every_loser_has_a_reason():
    plans = search(problem("llama2-70b", "h100:256", 512))
    assert plans[0].reason == ""
    assert all(plan.reason for plan in plans[1:])
    assert any("of 71.2 GiB" in plan.reason for plan in plans if plan.time is None)
    assert any("(NVLink" in plan.reason for plan in plans if plan.time)


def test_layouts_divide_the_model_and_the_batch():
    for layout in layouts(problem("llama2-70b", "h100:64", 64), {}):
        assert layout.num_devices == 64
        assert 8 % layout.model == 0  # key heads
        assert 80 % layout.stage == 0
        assert 64 % (layout.replica * layout.data) == 0


def test_the_train_step_takes_every_plan():
    config = decoder().config
    found = search(Problem(config, Cluster.of("cpu:8"), 16, 8))
    assert len(found) >= 5
    for plan in found:
        strategy = plan.strategy
        train = hj.make_train_step(decoder(), optax.adamw(1e-3), strategy, hj.make_mesh(strategy))
        train.lower((16, 8))


def test_fixed_fields():
    plans = search(problem(), {"stage": 4, "model": 4, "schedule": "gpipe", "remat": "layer"})
    assert [plan.strategy.data for plan in plans] == [4]
    assert plans[0].strategy.schedule == "gpipe"
    assert plans[0].strategy.remat == "layer"


def test_nothing_divides():
    with pytest.raises(UserError, match=r"no layout of 8 devices divides.*batch of 3") as error:
        search(problem(devices="h100:8", batch=3), {"data": 8})
    assert "\n" not in str(error.value)


def test_slices_are_crossed_by_outer_axes_alone():
    for plan in search(problem("llama2-70b", "v5e:16x16x4", 1024))[:10]:
        assert plan.links["model"].outer == 1
