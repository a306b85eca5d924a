"""One attention function: values, gradients, memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from hybrid_jax.models import dot_product_attention, kernels

SEGMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2], [5, 5, 5, 5, 5, 6, 6, 6]])


def heads(kv_heads=2, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(2, 8, 4, 6), (2, 8, kv_heads, 6), (2, 8, kv_heads, 6), (2, 8, 4, 6)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def by_jax(q, k, v, segment_ids, causal):
    """The same through `jax.nn.dot_product_attention`, which JAX differentiates."""
    mask = (
        None if segment_ids is None else segment_ids[:, None, :, None] == segment_ids[:, None, None]
    )
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("segment_ids", [None, SEGMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_value_and_gradients_match_jax(kv_heads, segment_ids, causal):
    *qkv, dout = heads(kv_heads)
    ours = lambda *qkv: dot_product_attention(*qkv, segment_ids=segment_ids, causal=causal)
    theirs = lambda *qkv: by_jax(*qkv, segment_ids, causal)
    (out, vjp), (expected, expected_vjp) = jax.vjp(ours, *qkv), jax.vjp(theirs, *qkv)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    for grad, expected_grad in zip(vjp(dout), expected_vjp(dout), strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_bfloat16_and_close():
    *qkv, dout = heads()
    half = [x.astype(jnp.bfloat16) for x in qkv]
    out, vjp = jax.vjp(dot_product_attention, *half)
    grads = vjp(dout.astype(jnp.bfloat16))
    assert {x.dtype for x in (out, *grads)} == {jnp.dtype(jnp.bfloat16)}
    expected, expected_vjp = jax.vjp(dot_product_attention, *qkv)
    np.testing.assert_allclose(out.astype("f4"), expected, atol=0.05)
    for grad, expected_grad in zip(grads, expected_vjp(dout), strict=True):
        np.testing.assert_allclose(grad.astype("f4"), expected_grad, atol=0.1)


def test_nothing_of_the_size_of_the_scores_is_kept_for_the_backward_pass():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 64, 2, 4)), jnp.float32) for _ in range(3))
    _, vjp = jax.vjp(dot_product_attention, q, k, v)
    assert max(leaf.size for leaf in jax.tree.leaves(vjp)) == q.size


@pytest.mark.parametrize("axes", [("model",), ("data", "model")], ids=["plain", "in a manual mesh"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_tpu_kernel_computes_the_same(packed, axes):
    """In Pallas' interpreter; alone, and in a step that is manual over data, auto over model."""
    rng = np.random.default_rng(0)
    qkv = [jnp.asarray(rng.normal(size=(2, 128, n, 8)), jnp.float32) for n in (4, 2, 2)]
    segment_ids = jnp.asarray(np.repeat([[0] * 50 + [1] * 78], 2, axis=0)) if packed else None

    def loss(kernel, *qkv):
        return jnp.sum(jnp.sin(kernel(*qkv)))

    def splash(q, k, v):
        if axes == ("model",):
            return kernels.splash(q, k, v, segment_ids, True, None, True)
        mesh = jax.make_mesh((2, 2), axes, axis_types=(AxisType.Auto,) * 2)
        local = lambda q, k, v, ids: kernels.splash(q, k, v, ids, True, "model", True)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=P("data"),
            out_specs=P("data"),
            axis_names={"data"},
            check_vma=False,
        )(q, k, v, segment_ids)

    xla = lambda q, k, v: dot_product_attention(q, k, v, segment_ids=segment_ids)
    value, grads = jax.jit(jax.value_and_grad(partial(loss, splash), argnums=(0, 1, 2)))(*qkv)
    expected, expected_grads = jax.value_and_grad(partial(loss, xla), argnums=(0, 1, 2))(*qkv)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-3, atol=1e-4)
