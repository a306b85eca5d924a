"""What GPipe and circular pipelines can reach, beside the planner's own choice."""

from __future__ import annotations

import pytest

from hybrid_jax.config.model import preset
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.bounds import bounds
from hybrid_jax.planning.planner import plan
from hybrid_jax.planning.search import Problem

GIB = 2**30
SIZES = {"global_batch": 128, "seq_len": 4096}
LLAMA = Problem(preset("llama2-7b"), Cluster.of("v5p:4x4x4"), **SIZES, memory_bytes=16 * GIB)


@pytest.fixture(scope="module")
def report():
    return plan(LLAMA.config, LLAMA.cluster, **SIZES, memory_gib=16, stage=4)


def sent(found) -> float:
    return sum(found.time.sent_bytes.values())


def test_the_plan_computes_less_than_any_peer_in_the_same_memory(report):
    """GPipe and circular pipelines hold all microbatches, so in 16 GiB they must recompute."""
    best = report.plans[0]
    assert best.memory.total <= LLAMA.room
    for found in bounds(LLAMA, 4):
        assert best.time.hardware_flops < 0.9 * found.flops.time.hardware_flops
        assert best.time.total < found.fastest.time.total


def test_the_plan_sends_less_than_any_gpipe(report):
    gpipe, circular = bounds(LLAMA, 4)
    assert (gpipe.kind, circular.kind) == ("gpipe", "circular")
    assert sent(report.plans[0]) < gpipe.sent.sent_bytes
    # A circular one may send less still, recomputing everything.
    assert circular.sent.time.hardware_flops > 1.2 * report.plans[0].time.hardware_flops


def test_the_table_tells_both(report):
    text = str(report)
    for name in ("gpipe, sends least", "circular, computes least", "circular, fastest"):
        assert name in text


def test_a_bound_is_no_more_than_any_gpipe_plan_needs():
    gpipe = plan(LLAMA.config, LLAMA.cluster, **SIZES, memory_gib=16, stage=4, schedule="gpipe")
    found = bounds(LLAMA, 4)[0]
    for one in gpipe.plans:
        if one.time is not None:
            assert sent(one) >= found.sent.sent_bytes
            assert one.time.hardware_flops >= found.flops.time.hardware_flops
            assert one.time.total >= found.fastest.time.total


def test_less_memory_leaves_fewer_peers():
    tight = Problem(LLAMA.config, LLAMA.cluster, **SIZES, memory_bytes=1 * GIB)
    assert bounds(tight, 4) == ()
    tighter = Problem(LLAMA.config, LLAMA.cluster, **SIZES, memory_bytes=8 * GIB)
    assert bounds(tighter, 4)[1].sent.sent_bytes > bounds(LLAMA, 4)[1].sent.sent_bytes
