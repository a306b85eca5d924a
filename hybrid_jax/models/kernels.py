"""Hand-written attention kernels: splash attention on TPU, cuDNN on GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

LANES = 128  # a splash block is a multiple of the TPU's vector lanes


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    causal: bool,
    heads_axis: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Pallas flash attention for TPU that skips the blocks a mask empties; T a multiple of 128.

    Args:
      q, k, v, segment_ids, causal, heads_axis: as for `dot_product_attention`.
      interpret: runs the kernel as plain JAX operations, on any platform.
    """
    return _splash_forward(q, k, v, segment_ids, causal, heads_axis, interpret)[0]


def _splash_forward(q, k, v, segment_ids, causal, heads_axis, interpret):
    def one_shard(q, k, v, segment_ids=None):
        return jax.vjp(_splash_kernel(q, segment_ids, causal, interpret), q, k, v)[0]

    args = _present(q, k, v, segment_ids)
    return _over_heads(one_shard, args, heads_axis, outputs=1)[0], (q, k, v, segment_ids)


def _splash_backward(causal, heads_axis, interpret, residuals, dout):
    # The kernel's own residuals hold tables of its mask, which XLA cannot carry from slot to slot
    # of a pipeline; so the kernel runs again here. Under remat, XLA merges this run with that of
    # the recomputation.
    q, k, v, segment_ids = residuals

    def one_shard(dout, q, k, v, segment_ids=None):
        return jax.vjp(_splash_kernel(q, segment_ids, causal, interpret), q, k, v)[1](dout)

    args = _present(dout, q, k, v, segment_ids)
    return *_over_heads(one_shard, args, heads_axis, outputs=3), None


splash.defvjp(_splash_forward, _splash_backward)


def _splash_kernel(q, segment_ids, causal, interpret) -> Callable[..., jax.Array]:
    """Attention over heads that are all on one device."""
    # Importing Pallas takes long, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    length, heads, head_dim = q.shape[1:]
    mask = pallas.CausalMask if causal else pallas.FullMask
    kernel = pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([mask((length, length))] * heads),
        block_sizes=_block_sizes(pallas, length),
        interpret=interpret,
    )

    def one_example(q, k, v, segment_ids) -> Any:
        ids = None if segment_ids is None else pallas.SegmentIds(segment_ids, segment_ids)
        return kernel(q, k, v, ids)

    def attend(q, k, v):
        q, k, v = (x.swapaxes(1, 2) for x in (q * head_dim**-0.5, k, v))
        return jax.vmap(one_example)(q, k, v, segment_ids).swapaxes(1, 2)

    return attend


def cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, heads_axis: str | None = None
) -> jax.Array:
    """cuDNN's flash attention; bfloat16 or float16, one document per sequence."""

    def one_shard(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")

    return _over_heads(one_shard, [q, k, v], heads_axis, outputs=1)[0]


def supports_splash(q: jax.Array) -> bool:
    """Whether queries [B, T, N, H] have a shape that the TPU kernel takes."""
    return q.shape[1] % LANES == 0


def supports_cudnn(q: jax.Array, segment_ids: jax.Array | None) -> bool:
    """Whether cuDNN takes these queries; with a mask it would be handed the whole [T, T] of it."""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    # Tracing for cuDNN asks the library for its version: it must be here, also for absent GPUs.
    present = jax.default_backend() == "gpu" or _has_cudnn()
    return present and half and segment_ids is None and q.shape[3] % 8 == 0 and q.shape[3] <= 128


def _has_cudnn() -> bool:
    """Whether the library is installed as a Python package, as JAX's CUDA plugin finds it."""
    try:
        return importlib.util.find_spec("nvidia.cudnn") is not None
    except ModuleNotFoundError:  # no package of NVIDIA's at all
        return False


def _present(*args: jax.Array | None) -> list[jax.Array]:
    return [arg for arg in args if arg is not None]


def _over_heads(
    kernel: Callable[..., Any], args: list[jax.Array], heads_axis: str | None, *, outputs: int
) -> tuple:
    """Runs a kernel on each device's heads: XLA cannot partition one over an automatic axis.

    Args:
      args: arrays [B, T, heads, H] and, perhaps, segment ids [B, T].
      outputs: how many arrays [B, T, heads, H] the kernel returns.
    """
    if heads_axis is not None:
        heads = PartitionSpec(None, None, heads_axis, None)
        kernel = jax.shard_map(
            kernel,
            in_specs=tuple(heads if arg.ndim == 4 else PartitionSpec() for arg in args),
            out_specs=heads,
            axis_names={heads_axis},
            check_vma=False,
        )
    out = kernel(*args)
    return (out,) if outputs == 1 else tuple(out)


def _block_sizes(pallas, length: int):
    """The largest tiles up to 512 that divide the length."""
    size = next(size for size in (512, 256, LANES) if length % size == 0)
    return pallas.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
