"""Residuals: what the ring must hold, and that a vjp taken apart is the same when put together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import decoder, plain_batch

from hybrid_jax.pipeline import ring
from hybrid_jax.pipeline.program import make_chunk

BATCH, LENGTH, WIDTH, MLP, LAYERS = 3, 8, 16, 32, 4
TABLE = np.linspace(0.0, 1.0, WIDTH, dtype=np.float32)[None]


def forward(known, x):
    params, batch = known

    def chunk(params, x):
        return jnp.sin(x @ params["kernel"]) * TABLE + params["bias"] * batch["scale"]

    return jax.vjp(chunk, params, x)


@pytest.fixture
def known():
    k, b, s = jax.random.split(jax.random.key(0), 3)
    params = {
        "kernel": jax.random.normal(k, (WIDTH, WIDTH)),
        "bias": jax.random.normal(b, (1, WIDTH)),
    }
    return params, {"scale": jax.random.normal(s, (BATCH, 1))}


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (BATCH, WIDTH))


def test_a_vjp_put_together_again_is_the_same(known, x):
    plan = ring.plan_residuals(forward, known, x)
    y, vjp = forward(known, x)
    again = plan.join(plan.split(vjp), known)
    for found, expected in zip(
        jax.tree.leaves(again(jnp.ones_like(y))),
        jax.tree.leaves(vjp(jnp.ones_like(y))),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_known_inputs_and_constants_are_not_stored(known, x):
    plan = ring.plan_residuals(forward, known, x)
    assert {leaf.shape for leaf in plan.stored} == {(BATCH, WIDTH)}


def test_the_vjp_of_another_microbatch_takes_its_own_inputs(known, x):
    plan = ring.plan_residuals(forward, known, x)
    params, batch = known
    other = (params, {"scale": 2 * batch["scale"]})
    y, vjp = forward(other, x)
    stored = plan.split(vjp)
    np.testing.assert_array_equal(plan.join(stored, other)(y)[0]["bias"], vjp(y)[0]["bias"])
    wrong = plan.join(stored, known)(y)[0]["bias"]
    assert not np.allclose(wrong, vjp(y)[0]["bias"])


@pytest.fixture(scope="module")
def stored_shapes():
    """What the ring holds of a chunk of four layers, for each `remat`."""
    model = decoder("gpt2", num_layers=LAYERS)
    batch = plain_batch(BATCH, LENGTH)
    params = jax.eval_shape(model.init, jax.random.key(0))["blocks"]
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), jnp.float32)

    def layer(params, x, microbatch, layer_id, key_data):
        return model.layer(params, x, microbatch)

    def shapes(remat):
        chunk = make_chunk(layer, remat)

        def forward(known, x):
            params, *rest = known
            return jax.vjp(lambda params, x: chunk(params, x, *rest), params, x)

        ids = jax.ShapeDtypeStruct((LAYERS,), jnp.int32)
        key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
        plan = ring.plan_residuals(forward, (params, batch, ids, key_data), x)
        return [leaf.shape for leaf in plan.stored]

    return {remat: shapes(remat) for remat in ("none", "dots", "layer", "stage")}


def test_remat_stage_stores_the_input_of_the_chunk(stored_shapes):
    assert stored_shapes["stage"] == [(BATCH, LENGTH, WIDTH)]


def test_remat_layer_stores_the_input_of_each_layer(stored_shapes):
    assert stored_shapes["layer"] == [(LAYERS, BATCH, LENGTH, WIDTH)]


def test_remat_dots_stores_matmul_results(stored_shapes):
    assert (LAYERS, BATCH, LENGTH, MLP) in stored_shapes["dots"]
    assert len(stored_shapes["layer"]) < len(stored_shapes["dots"]) < len(stored_shapes["none"])


def test_less_remat_stores_more(stored_shapes):
    layer, none = stored_shapes["layer"], stored_shapes["none"]
    assert (LAYERS, BATCH, LENGTH, MLP) in none
    assert sum(map(np.prod, none)) > 4 * sum(map(np.prod, layer))


def test_slots_hold_what_was_written_last():
    shapes = [jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)]
    buffers = ring.allocate(3, shapes)
    for slot, value in [(0, 1), (2, 2), (1, 3), (0, 4)]:
        values = [jnp.full((2,), value, jnp.float32), jnp.int32(10 * value)]
        buffers = ring.write(buffers, jnp.int32(slot), values)
    for slot, value in [(0, 4), (1, 3), (2, 2)]:
        first, second = ring.read(buffers, jnp.int32(slot))
        np.testing.assert_array_equal(first, [value, value])
        assert second == 10 * value
