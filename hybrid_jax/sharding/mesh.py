"""Building the device mesh of a strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from hybrid_jax.config.strategy import MESH_AXES, Strategy
from hybrid_jax.errors import UserError


def make_mesh(strategy: Strategy, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with the six named axes of `strategy`, slowest link outermost.

    On TPU the axes follow the physical torus; with several slices (DCN between them) the outer
    axes `replica`, `stage`, `data` are the ones that cross slices.

    Args:
      strategy: its axis sizes must multiply to the number of devices.
      devices: all of `jax.devices()` by default.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or no outer axes of the mesh
        multiply to the number of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = strategy.axis_sizes
    if strategy.num_devices != len(devices):
        product = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
        raise UserError(
            f"the mesh axes {product or 'all 1'} need {strategy.num_devices} devices, but there "
            f"are {len(devices)}: change an axis so that the product is {len(devices)}, pass "
            f"devices=jax.devices()[:{strategy.num_devices}], or on a CPU call "
            f"force_cpu_devices({strategy.num_devices}) (config: cpu_devices)."
        )
    shape = tuple(sizes.values())
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices > 1:
        outer = _split_over_slices(sizes, num_slices)
        inner = tuple(size // dcn for size, dcn in zip(shape, outer, strict=True))
        array = mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, allow_split_physical_axes=True
        )
    else:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _split_over_slices(sizes: dict[str, int], num_slices: int) -> tuple[int, ...]:
    """Puts the slices on the outermost axes that divide them; one factor per mesh axis."""
    factors, left = [], num_slices
    for axis, size in sizes.items():
        factor = math.gcd(size, left) if axis in ("replica", "stage", "data") else 1
        factors.append(factor)
        left //= factor
    if left != 1:
        raise UserError(
            f"{num_slices} slices cannot be laid on replica={sizes['replica']} x "
            f"stage={sizes['stage']} x data={sizes['data']}: make the product of these axes a "
            f"multiple of {num_slices}, so that no other axis crosses the slow network."
        )
    return tuple(factors)
