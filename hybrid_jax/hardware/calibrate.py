"""The CPU entry of the hardware table, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hybrid_jax.hardware.chips import CHIPS, Chip
from hybrid_jax.hardware.cluster import Cluster

_SIZE = 768  # of the matrices: large enough to be bound by arithmetic
_LARGE = 2**22  # f32 entries: larger than a core's share of the cache


def calibrate() -> Cluster:
    """Returns the cluster of this process's virtual CPU devices; takes a few seconds.

    All devices share the machine's cores, so each counts as its share of what one program gets out
    of all of them. Fractions are 1: what is measured is what is reached.
    """
    import jax

    count = jax.device_count()
    chip = replace(
        CHIPS["cpu"],
        flops_f32=_matmul_flops("float32") / count,
        flops_bf16=_matmul_flops("bfloat16") / count,
        hbm_bandwidth=_copy_bandwidth() / count,
        matmul_fraction=1.0,
        hbm_fraction=1.0,
        link_fraction=1.0,
    )
    return Cluster(_with_links(chip, count), (count,))


def _matmul_flops(dtype: str) -> float:
    import jax
    import jax.numpy as jnp

    x = jnp.ones((_SIZE, _SIZE), dtype)
    return 2 * _SIZE**3 / _seconds(jax.jit(lambda x: x @ x), x)


def _copy_bandwidth() -> float:
    import jax
    import jax.numpy as jnp

    x = jnp.ones(_LARGE, jnp.float32)
    return 2 * x.nbytes / _seconds(jax.jit(lambda x: x + 1), x)


def _with_links(chip: Chip, count: int) -> Chip:
    """Latency and bandwidth from all-reduces of few and of many bytes over all devices."""
    if count == 1:
        return chip
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((count,), ("all",), axis_types=(AxisType.Auto,))

    def reduce_seconds(entries: int) -> float:
        reduce = jax.shard_map(
            lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=P("all"), out_specs=P()
        )
        return _seconds(jax.jit(reduce), jnp.ones(count * entries, jnp.float32))

    small, large = reduce_seconds(16), reduce_seconds(_LARGE // count)
    sent = 2 * (count - 1) / count * 4 * (_LARGE // count)
    return replace(chip, latency=small, link_bandwidth=sent / max(large - small, 1e-6))


def _seconds(function: Callable[..., Any], *args: Any, repeats: int = 7) -> float:
    """The shortest of several calls, after one that compiles."""
    import jax

    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return min(times)
