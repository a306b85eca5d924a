"""The executor alone, on a toy model without any other axis: pipeline equals plain loop.

What flows from layer to layer has two arrays, and the head returns three sums, of which two are
trained on and one is a vector.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from hybrid_jax.pipeline.executor import execute
from hybrid_jax.pipeline.program import StageProgram, make_chunk
from hybrid_jax.pipeline.schedules import forward_only, schedule
from hybrid_jax.pipeline.stage_worker import Accumulators, Inputs
from hybrid_jax.train.stage_order import depth_of_slot

VOCAB, LENGTH, WIDTH, LAYERS_PER_CHUNK, ROWS = 8, 4, 3, 2, 2
COTANGENTS = {"loss": 1.0, "balance": 0.3}
BATCH_AXES = {
    "tokens": ("batch", "length"),
    "weights": ("batch", "length"),
    "shift": ("batch",),
}


def embed(shared, batch, key_data):
    x = shared["table"][batch["tokens"]]
    return {"x": x, "balance": jnp.zeros(x.shape[:2])}


def layer(kernel, carry, batch, layer_id, key_data):
    # Tells layers and examples apart, so that a wrong order or a wrong microbatch shows.
    x = carry["x"]
    x = x + jnp.tanh(x @ kernel + 0.1 * layer_id + batch["shift"][:, None, None])
    return {"x": x, "balance": carry["balance"] + jnp.mean(x**2, axis=-1)}


def head(shared, carry, batch):
    scores = jnp.einsum("btd,vd->btv", carry["x"], shared["table"])
    losses = jax.nn.logsumexp(scores, -1) - jnp.take_along_axis(
        scores, batch["tokens"][..., None], -1
    ).squeeze(-1)
    weights = batch["weights"]
    return {
        "loss": jnp.sum(weights * losses),
        "balance": jnp.sum(weights * carry["balance"]),
        "by_column": jnp.einsum("bt,btd->d", weights, carry["x"]),
    }


def problem(num_layers, microbatches):
    rng = np.random.default_rng(0)
    shared = {"table": rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)}
    blocks = rng.normal(size=(num_layers, WIDTH, WIDTH)).astype(np.float32)
    shape = (microbatches, ROWS, LENGTH)
    batch = {
        "tokens": rng.integers(0, VOCAB, shape, np.int32),
        "weights": rng.uniform(0.5, 2.0, shape).astype(np.float32),
        "shift": rng.normal(size=shape[:2]).astype(np.float32),
    }
    return shared, blocks, batch


def plain(shared, blocks, batch):
    """Sums and gradients of all microbatches, one after the other through all layers."""

    def loss(shared, blocks):
        totals = []
        for m in range(len(batch["tokens"])):
            microbatch = {name: leaf[m] for name, leaf in batch.items()}
            carry = embed(shared, microbatch, None)
            for index, kernel in enumerate(blocks):
                carry = layer(kernel, carry, microbatch, index, None)
            totals.append(head(shared, carry, microbatch))
        sums = jax.tree.map(lambda *parts: sum(parts), *totals)
        return sum(factor * sums[name] for name, factor in COTANGENTS.items()), sums

    (_, sums), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(shared, blocks)
    return Accumulators(sums, *grads)


def pipelined(table, shared, blocks, batch, **options):
    """The same through `execute`, with gradients put back into depth order."""
    program = StageProgram(embed, make_chunk(layer, "layer"), head, ("batch", "length"), BATCH_AXES)
    stages, chunks = table.stages, table.chunks

    def body(shared, blocks, batch):
        blocks = blocks.reshape(chunks, -1, WIDTH, WIDTH)
        cotangents = jax.tree.map(jnp.float32, COTANGENTS)
        inputs = Inputs(shared, blocks, batch, jnp.zeros(2, jnp.uint32), cotangents)
        totals = execute(table, program, inputs, **options)
        # One entry for each stage; what all stages have a share of is added up outside.
        by_stage = jax.tree.map(lambda x: x[None], totals._replace(block_grads=()))
        grads = jax.tree.map(lambda g: g.reshape(-1, WIDTH, WIDTH), totals.block_grads)
        return by_stage, grads

    whole, staged = PartitionSpec(), PartitionSpec("stage")
    run = jax.shard_map(
        body,
        mesh=Mesh(np.array(jax.devices()[:stages]), ("stage",)),
        in_specs=(whole, staged, whole),
        out_specs=(staged, staged),
        check_vma=False,
    )
    # Of every layer in a stage's memory, its place in depth.
    depth = np.arange(len(blocks)).reshape(stages * chunks, -1)[depth_of_slot(stages, chunks)]
    by_stage, grads = jax.jit(run)(shared, jnp.array(blocks)[depth.ravel()], batch)
    totals = jax.tree.map(lambda x: x.sum(0), jax.device_get(by_stage))
    if len(grads):
        grads = np.array(grads)[np.argsort(depth.ravel())]
    return totals._replace(block_grads=grads)


# fmt: off
TABLES = [
    schedule("gpipe", 1, 3),
    schedule("1f1b", 1, 3),                  # F and B share every tick: no ring
    schedule("gpipe", 3, 4),
    schedule("gpipe", 4, 1),
    schedule("1f1b", 3, 4),
    schedule("1f1b", 4, 2),                  # fewer microbatches than stages
    schedule("interleaved", 2, 4, chunks=3),
    schedule("interleaved", 3, 3, chunks=2),
]
# fmt: on


def describe(table):
    return f"{table.name}-{table.stages}x{table.microbatches}x{table.chunks}"


@pytest.mark.parametrize("skip_bubbles", [True, False])
@pytest.mark.parametrize("table", TABLES, ids=describe)
def test_pipeline_equals_a_plain_loop(table, skip_bubbles):
    num_layers = table.stages * table.chunks * LAYERS_PER_CHUNK
    arguments = problem(num_layers, table.microbatches)
    expected = jax.device_get(plain(*arguments))
    found = pipelined(table, *arguments, skip_bubbles=skip_bubbles, bubble_value=np.nan)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    "table",
    [forward_only(1, 2), forward_only(3, 4), forward_only(2, 4, chunks=2)],
    ids=describe,
)
def test_forward_only_returns_the_loss_and_no_gradients(table):
    num_layers = table.stages * table.chunks * LAYERS_PER_CHUNK
    arguments = problem(num_layers, table.microbatches)
    expected = plain(*arguments)
    found = pipelined(table, *arguments, skip_bubbles=False, bubble_value=np.nan)
    assert found.sums.keys() == expected.sums.keys()
    for name, value in expected.sums.items():
        np.testing.assert_allclose(found.sums[name], value, rtol=1e-5)
    assert (found.shared_grads, found.block_grads) == ((), ())
