"""Peak speed of accelerators, for model FLOP utilisation."""

from __future__ import annotations

# Dense bf16 FLOP/s of one JAX device, by a part of its `device_kind`; the first match counts.
# TPU: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. GPU: NVIDIA's data sheets of the A100, H100, H200
# and DGX B200, whose figures with sparsity are halved here.
_PEAK_BF16_FLOPS = (
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("A100", 312e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak dense bf16 FLOP/s of one device, or None where it is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3")
    989000000000000.0
    >>> peak_flops("cpu") is None
    True

    Args:
      device_kind: as in `jax.devices()[0].device_kind`.
    """
    return next((flops for part, flops in _PEAK_BF16_FLOPS if part in device_kind), None)
