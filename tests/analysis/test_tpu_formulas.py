"""Bytes of steps compiled for absent chips, against formulas written out from their sizes.

bf16 compute: a gathered entry is 2 bytes, a reduced gradient 4. XLA:TPU differs from what is
written in one thing: a reduce-scatter of a vector becomes an all-reduce, of twice the bytes. Sizes
are such that it pads no reduce-scatter of a matrix, as it may (by a few percent).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from test_ledger import absent

import hybrid_jax as hj
from hybrid_jax.analysis.ledger import ledger
from hybrid_jax.planning.traffic import transfers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

L, V, D, N, H, F, T = 4, 8192, 1024, 8, 128, 2816, 512
"""Layers, vocabulary, width, heads (as many for keys), entries of a head and of the MLP, tokens."""

LAYER = 4 * D * N * H + 3 * D * F  # q, k, v, o; up, gate, down
NORMS = 2 * D
SCALARS = 3  # loss, weight and gradient norm are summed over all devices

CONFIG = hj.models.preset(
    "llama2-7b",
    num_layers=L,
    vocab_size=V,
    embed_dim=D,
    num_heads=N,
    num_kv_heads=N,
    mlp_dim=F,
    max_length=T,
)


@pytest.fixture(scope="module")
def devices():
    return absent("v5e:2x4")


@pytest.fixture
def uncached():
    """Programs for absent devices cannot be read back from the persistent cache."""
    above = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", above)


def make(devices, strategy):
    mesh = hj.make_mesh(strategy, devices)
    return hj.make_train_step(hj.models.Decoder(CONFIG), optax.adamw(1e-3), strategy, mesh)


def sent(devices, strategy, batch):
    """Bytes by (axes, kind)."""
    book = hj.inspect(make(devices, strategy), (batch, T)).ledger
    totals: dict[tuple[str, str], float] = {}
    for total in book.by_axis():
        key = "+".join(total.axes), total.kind
        totals[key] = totals.get(key, 0) + total.wire_bytes
    return totals


def planned(strategy, batch, axis):
    found = transfers(CONFIG, strategy, batch, T)
    size = strategy.axis_sizes[axis]
    return sum(transfer.sent_bytes(size) for transfer in found if transfer.axis == axis)


def once(size: int, num_bytes: float) -> float:
    """What a device sends to gather, or reduce-scatter, so many bytes over `size` devices."""
    return (size - 1) / size * num_bytes


def on_axis(found, axis):
    return sum(num_bytes for (axes, _), num_bytes in found.items() if axes == axis)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_zero_1(devices, uncached, microbatches):
    strategy = hj.Strategy(data=8, microbatches=microbatches)
    batch = 8 * microbatches
    found = sent(devices, strategy, batch)
    matrices, vectors = L * LAYER + 2 * V * D, L * NORMS + D
    assert found == {
        ("data", "all-gather"): once(8, 2 * (matrices + vectors)),
        ("data", "reduce-scatter"): once(8, 4 * matrices),
        ("data", "all-reduce"): 2 * once(8, 4 * (vectors + SCALARS)),
    }
    # The planner lets vectors be scattered, and leaves scalars out.
    more = on_axis(found, "data") - planned(strategy, batch, "data")
    assert more == once(8, 4 * (vectors + 2 * SCALARS))


def test_stage_data_and_model(devices, uncached):
    stages, data, model, microbatches = 2, 2, 2, 4
    strategy = hj.Strategy(stage=stages, data=data, model=model, microbatches=microbatches)
    batch = data * microbatches
    found = sent(devices, strategy, batch)
    x = 2 * T * D
    ticks = microbatches + stages - 1
    slots = ticks * L // stages
    matrices, vectors = L / stages * LAYER / model, L / stages * NORMS
    outer = 2 * V * D / model
    # Forward 2, recomputation 1, backward 2; embedding in every tick; each stage's share of the
    # head: dx, and three f32 numbers a token.
    on_model = slots * 5 * x + ticks * x + microbatches * (x + 3 * 4 * T) / stages
    squares = 9 * 4  # for the norm: at most one f32 for each sharded parameter
    more = found.pop(("model", "all-reduce")) - 2 * once(model, on_model)
    assert 0 < more <= 2 * once(model, squares)
    assert found == {
        ("stage", "collective-permute"): (2 * ticks - 1) * x,
        ("stage", "all-to-all"): microbatches * once(stages, x),
        ("stage", "all-gather"): microbatches * once(stages, x) + once(stages, 2 * (outer + D)),
        ("stage", "reduce-scatter"): once(stages, 4 * outer),
        ("stage", "all-reduce"): 2 * once(stages, 4 * D),
        ("stage+data", "all-reduce"): 2 * once(4, 4 * SCALARS),
        ("data", "all-gather"): once(data, 2 * (matrices + vectors + (outer + D) / stages)),
        ("data", "reduce-scatter"): once(data, 4 * (matrices + outer / stages)),
        ("data", "all-reduce"): 2 * once(data, 4 * (vectors + D / stages)),
    }
    assert planned(strategy, batch, "model") == 2 * once(model, on_model)
    assert on_axis(found, "stage") - planned(strategy, batch, "stage") == once(stages, 4 * D)
    twice = once(data, 4 * (vectors + D / stages))
    assert on_axis(found, "data") - planned(strategy, batch, "data") == twice


@pytest.mark.parametrize(
    ("name", "at_once"), [("v5p:4x4x4", "all-gather"), ("v5e:8x8", "all-reduce")]
)
def test_why_parameters_are_gathered_axis_by_axis(uncached, name, at_once):
    """Axis by axis a gather stays one on every torus, and sends as much."""
    mesh = hj.make_mesh(hj.Strategy(stage=4, data=16), absent(name))
    spec = PartitionSpec(("stage", "data"))
    x = jax.ShapeDtypeStruct((4096, D), jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    def compiled(gather):
        whole = jax.shard_map(
            lambda x: 2 * gather(x),
            mesh=mesh,
            in_specs=spec,
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        book = ledger(jax.jit(whole).lower(x).compile().as_text(), mesh)
        return {row.kind for row in book.rows}, book.wire_bytes()

    def by_axis(x):
        return lax.all_gather(lax.all_gather(x, "data", tiled=True), "stage", tiled=True)

    sends = once(64, 2 * 4096 * D)
    assert compiled(by_axis) == ({"all-gather"}, sends)
    both = compiled(lambda x: lax.all_gather(x, ("stage", "data"), tiled=True))
    assert both == ({at_once}, sends * (2 if at_once == "all-reduce" else 1))


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_what_makes_the_compiler_abort_is_refused(devices, schedule):
    strategy = hj.Strategy(
        stage=2,
        data=2,
        model=2,
        microbatches=2,
        remat="stage",
        schedule=schedule,
        chunks=2 if schedule == "interleaved" else 1,
    )
    with pytest.raises(hj.UserError, match="makes XLA:TPU abort: use remat='layer'"):
        make(devices, strategy)
