"""Step time: by hand where that can be done, the real schedules, and what must take longer."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.config.model import flops_per_token, preset
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.pipeline.schedules import schedule
from hybrid_jax.planning.step_time import step_time

CONFIG = preset("llama2-7b")


def time(layout, devices, batch=64, length=4096, config=CONFIG):
    return step_time(config, layout, Cluster.of(devices), batch, length)


def test_one_device_is_bound_by_its_matmuls():
    got = time(Strategy(remat="none"), "h100:1", batch=1)
    chip = Cluster.of("h100:1").chip
    flops = flops_per_token(CONFIG, 4096) * 4096
    scores = 12 * CONFIG.num_layers * CONFIG.num_heads * CONFIG.head_dim * 4096 * 4096
    # Half of the causal square, and backward two and a half times the forward.
    assert got.hardware_flops == pytest.approx(flops - scores + scores * 3.5 / 6)
    assert got.layers + got.head == pytest.approx(
        got.hardware_flops / (chip.flops_bf16 * chip.matmul_fraction)
    )
    assert (got.bubble, got.accumulate, got.communication) == (0, 0, {})
    assert got.mfu == pytest.approx(flops / chip.flops_bf16 / got.total)


@pytest.mark.parametrize(
    ("name", "stages", "microbatches", "chunks"),
    [("1f1b", 4, 8, 1), ("gpipe", 4, 8, 1), ("interleaved", 4, 8, 2), ("1f1b", 8, 4, 1)],
)
def test_the_bubble_is_that_of_the_schedule(name, stages, microbatches, chunks):
    layout = Strategy(stage=stages, schedule=name, microbatches=microbatches, chunks=chunks)
    got = time(layout, f"h100:{stages}", batch=8)
    table = schedule(name, stages, microbatches, chunks)
    assert got.bubble / got.layers == pytest.approx(table.simulate().bubble_fraction)


def test_recomputation_costs_flops():
    by_remat = [
        time(Strategy(data=8, remat=remat), "h100:8").hardware_flops
        for remat in ("none", "dots", "layer", "stage")
    ]
    assert by_remat == sorted(by_remat)
    assert len(set(by_remat)) == 4


@settings(max_examples=40, deadline=None)
@given(
    stage=st.sampled_from([1, 2, 4]),
    data=st.sampled_from([1, 2, 4]),
    model=st.sampled_from([1, 2, 4]),
    microbatches=st.sampled_from([1, 2, 4]),
    remat=st.sampled_from(["none", "dots", "layer", "stage"]),
    zero=st.sampled_from([0, 1, 3]),
)
def test_more_work_takes_longer(stage, data, model, microbatches, remat, zero):
    count = stage * data * model
    layout = Strategy(
        stage=stage, data=data, model=model, microbatches=microbatches, remat=remat, zero=zero
    )
    cluster = f"v5p:{count}"
    got = time(layout, cluster, batch=64)
    assert time(layout, cluster, batch=128).total > got.total
    assert time(layout, cluster, length=2048).total < got.total
    assert 0 < got.mfu < 1
    slow = dataclasses.replace(Cluster.of(cluster).chip, flops_bf16=1e14)
    slower = step_time(
        CONFIG, layout, dataclasses.replace(Cluster.of(cluster), chip=slow), 64, 4096
    )
    assert slower.total > got.total


def test_f32_is_slower():
    assert time(Strategy(precision="f32"), "v5p:1").total > 3 * time(Strategy(), "v5p:1").total
