"""The CPU entry of the hardware table, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hybrid_jax.hardware.chips import CHIPS, Chip
from hybrid_jax.hardware.cluster import Cluster

_TOKENS, _WIDTH = 256, 512  # of the matrices that a virtual device multiplies
_LARGE = 2**21  # f32 entries of a device: larger than a core's share of the cache
_REPEATS = 32  # of an operation in one program, so that starting the program does not count


def calibrate() -> Cluster:
    """Returns the cluster of this process's virtual CPU devices; takes a few seconds.

    All devices share the machine's cores, so each counts as its share of what all of them get done
    at once. Fractions are 1: what is measured is what is reached.
    """
    import jax

    count = jax.device_count()
    chip = replace(
        CHIPS["cpu"],
        flops_f32=_matmul_flops("float32"),
        flops_bf16=_matmul_flops("bfloat16"),
        hbm_bandwidth=_copy_bandwidth(),
        matmul_fraction=1.0,
        hbm_fraction=1.0,
        link_fraction=1.0,
    )
    return Cluster(_with_links(chip) if count > 1 else chip, (count,))


def _matmul_flops(dtype: str) -> float:
    """FLOP/s of one device while all multiply matrices of a small model's sizes."""
    import jax.numpy as jnp

    kernel = jnp.ones((_WIDTH, _WIDTH), dtype)
    seconds = _seconds_each(lambda x: x @ kernel, (_TOKENS, _WIDTH), dtype)
    return 2 * _TOKENS * _WIDTH**2 / seconds


def _copy_bandwidth() -> float:
    """Bytes/s of one device while all read and write."""
    return 2 * 4 * _LARGE / _seconds_each(lambda x: x + 1, (_LARGE,))


def _with_links(chip: Chip) -> Chip:
    """Latency and bandwidth from all-reduces of few and of many bytes over all devices."""
    import jax

    def reduce_seconds(entries: int) -> float:
        return _seconds_each(lambda x: jax.lax.psum(x, "all"), (entries,))

    count = jax.device_count()
    small, large = reduce_seconds(16), reduce_seconds(_LARGE)
    sent = 2 * (count - 1) / count * 4 * _LARGE
    return replace(chip, latency=small, link_bandwidth=sent / max(large - small, 1e-6))


def _seconds_each(
    operation: Callable[[Any], Any], shape: tuple[int, ...], dtype: str = "float32"
) -> float:
    """Seconds of one of many such operations, one after the other, on all devices at once."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType
    from jax.sharding import PartitionSpec as P

    def repeated(x):
        return jax.lax.scan(lambda x, _: (operation(x), None), x, length=_REPEATS)[0]

    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("all",), axis_types=(AxisType.Auto,))
    everywhere = jax.shard_map(
        repeated, mesh=mesh, in_specs=P("all"), out_specs=P("all"), check_vma=False
    )
    x = jnp.zeros((count * shape[0], *shape[1:]), dtype)
    return _shortest(jax.jit(everywhere), x) / _REPEATS


def _shortest(function: Callable[..., Any], *args: Any, repeats: int = 7) -> float:
    """The shortest of several calls, after one that compiles."""
    import jax

    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return min(times)
