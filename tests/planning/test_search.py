"""The search: fast, complete over what divides, within memory, and ranked with reasons."""

from __future__ import annotations

import time
from dataclasses import replace

import optax
import pytest
from tiny import decoder

import hybrid_jax as hj
from hybrid_jax.config.model import preset
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.search import Problem, layouts, search, variants


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


def with_layers(num_layers, devices="h100:64"):
    config = replace(preset("llama2-7b"), num_layers=num_layers)
    return Problem(config, Cluster.of(devices), 128, 4096)


def test_padded_layers_are_counted():
    """26 layers on 4 stages cost what 28 do, 23 % more than 26 with two chunks, and say so."""
    padded, full = with_layers(26), with_layers(28)
    interleaved = Strategy(stage=4, data=16, microbatches=8, schedule="interleaved", chunks=2)
    strategy = Strategy(stage=4, data=16, microbatches=8)
    links = padded.cluster.links(strategy)
    times = [p.time(strategy, links) for p in (padded, full)]
    assert times[0].total == times[1].total
    assert times[0].mfu < times[1].mfu  # padding is no work of the model
    assert padded.memory(strategy) == full.memory(strategy)
    chunked = padded.time(interleaved, links).layers
    assert chunked / times[0].layers == pytest.approx(32 / 28)
    plan = next(plan for plan in search(padded) if plan.strategy.stage == 4)
    assert plan.reason.endswith("; 2 padded layers beside 26 (+7.7% compute)")
    assert "padded" in str(hj.plan(padded.config, "h100:64", 128, 4096, stage=4))


def test_padding_is_tried_where_it_is_small():
    stages = lambda layers, **fixed: {x.stage for x in layouts(with_layers(layers), fixed)}
    assert stages(26) == {1, 2, 4}  # 8 stages of 4 places: the last would have no layer
    assert stages(31) == {1, 2, 4, 8, 16}
    assert stages(26, stage=8) == {8}
    assert stages(6, stage=8) == set()
    chunks = {v[0].chunks for v in variants(with_layers(23), Strategy(stage=2, data=32), {})}
    assert chunks == {1, 2, 3, 4, 6}


@pytest.mark.parametrize("num_layers", [4, 7])
def test_the_train_step_takes_every_plan(num_layers):
    config = decoder(num_layers=num_layers).config
    found = search(Problem(config, Cluster.of("cpu:8"), 16, 8))
    assert len(found) >= 5
    for plan in found:
        strategy = plan.strategy
        model = hj.models.Decoder(config)
        train = hj.make_train_step(model, optax.adamw(1e-3), strategy, hj.make_mesh(strategy))
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
