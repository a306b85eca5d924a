"""What accelerators can do, from their makers' data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

GB = 1e9
GIB = 2**30
TERA = 1e12


@dataclass(frozen=True)
class Chip:
    """One JAX device and how it reaches others.

    Attributes:
      name: as in "v5p:4x4x4".
      platform: "tpu", "gpu" or "cpu".
      flops_bf16, flops_f32: peak dense FLOP/s of matmuls.
      hbm_bytes: memory that a program can use.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s that one device sends over one link, one way: an ICI link to one
        neighbour, or all of NVLink.
      network_bandwidth: bytes/s that one device sends beyond that: its share of its host's NICs.
      torus_dims: of the ICI torus; 0 where a switch joins `domain` devices all to all.
      domain: devices joined by the fast links: of a host, or the most of a slice.
      host: devices of one host.
      wrap: a torus dim closes to a ring when its size is a multiple of this; in three dims only
        when all are.
      latency: seconds before a collective's first byte arrives, or a kernel starts; assumed too.
      matmul_fraction, hbm_fraction, link_fraction: of the peaks, what large matmuls, streaming and
        collectives reach. Assumed, not measured, but for what `calibrate` sets.
    """

    name: str
    platform: Literal["tpu", "gpu", "cpu"]
    flops_bf16: float
    flops_f32: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    torus_dims: int = 0
    domain: int = 8
    host: int = 8
    wrap: int = 1
    latency: float = 1e-5
    matmul_fraction: float = 0.75
    hbm_fraction: float = 0.8
    link_fraction: float = 0.8


def _tpu(name: str, tflops: float, hbm: tuple[float, float], ici: float, dcn: float, **sizes):
    # f32 matmuls at "highest" precision are six passes of bf16.
    return Chip(
        name,
        "tpu",
        tflops * TERA,
        tflops * TERA / 6,
        hbm[0] * GIB,
        hbm[1] * GB,
        ici * GB,
        dcn * GB,
        latency=2e-6,
        **sizes,
    )


GPU_MEMORY_FRACTION = 0.9
"""Of what a GPU's driver reports: CUDA's context, NCCL's buffers and cuBLAS's workspaces take the
rest. JAX takes 75 % unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""


def _gpu(
    name: str,
    tflops: tuple[float, float],
    hbm: tuple[float, float],
    nvlink: float,
    ib: float,
    domain: int = 8,
):
    return Chip(
        name,
        "gpu",
        tflops[0] * TERA,
        tflops[1] * TERA,
        GPU_MEMORY_FRACTION * hbm[0] * GIB,
        hbm[1] * GB,
        nvlink * GB,
        ib * GB,
        domain=domain,
    )


# TPU, from docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}: bf16 TFLOP/s, HBM GB/s, and ICI, quoted
# per chip for all links and both ways (400, 1200 and 800 GB/s over 4, 6 and 4 links), here one link
# one way; v4's from Jouppi et al. 2023 (arXiv:2304.01433), 50 GB/s. The scaling book (jax-ml.github
# .io/scaling-book/tpus) counts 10 % less for each; `link_fraction` is taken off here besides. DCN:
# 50 Gb/s a chip of v5p, 6.4 Tb/s a pod of v5e; v4 and v6e from the scaling book. Rings: every dim
# of slices of whole 4x4x4 cubes (v4, v5p: joined by optical switches), or dims of 16 (v5e, v6e).
# Largest slice: the pod, and for v5p the largest job. Usable HBM: what libtpu 0.0.42 says is
# available when a program is too large ("exceeds available HBM (95.74G)").
#
# GPU, from NVIDIA's data sheets (A100 80GB SXM; H100 SXM, NVL and PCIe; H200 SXM; HGX and DGX
# B200): dense bf16 (sheets quote twice that, with sparsity), f32 without tensor cores, HBM GB/s,
# NVLink one way (half of what is quoted), one ConnectX NIC for each GPU (200 Gb/s A100, 400 Gb/s
# later). HBM: what the driver reports, in GiB; see `gpu_targets`.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu("v4", 275, (30.75, 1200), 50, 6.25, torus_dims=3, domain=4096, host=4, wrap=4),
        _tpu("v5e", 197, (15.75, 819), 50, 3.125, torus_dims=2, domain=256, host=8, wrap=16),
        _tpu("v5p", 459, (95.74, 2765), 100, 6.25, torus_dims=3, domain=6144, host=4, wrap=4),
        _tpu("v6e", 918, (31.25, 1638), 100, 12.5, torus_dims=2, domain=256, host=8, wrap=16),
        _gpu("a100", (312, 19.5), (79.25, 2039), 300, 25),
        _gpu("h100", (989, 67), (79.11, 3350), 450, 50),
        _gpu("h100-nvl", (835, 60), (93.0, 3900), 300, 50, domain=2),
        _gpu("h100-pcie", (756, 51), (79.11, 2000), 300, 50, domain=2),
        _gpu("h200", (989, 67), (141.0, 4800), 450, 50),
        _gpu("b200", (2250, 75), (178.36, 7700), 900, 50),
        # Virtual devices of one desktop core each; `calibrate` measures this machine's.
        Chip(
            "cpu", "cpu", 2e10, 4e10, 4 * GIB, 5e9, 4e9, 1e9, domain=1024, host=1024, latency=1e-3
        ),
    )
}

# A part of `device_kind` to the chip; the first match counts.
_KINDS = (
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5e", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6", "v6e"),
    ("A100", "a100"),
    ("H100 NVL", "h100-nvl"),
    ("H100 PCIe", "h100-pcie"),
    ("H100", "h100"),
    ("H200", "h200"),
    ("B200", "b200"),
    ("cpu", "cpu"),
)


def chip_of_kind(device_kind: str) -> str | None:
    """The name of the chip that JAX calls `device_kind`, or None.

    >>> chip_of_kind("TPU v5 lite"), chip_of_kind("NVIDIA H100 80GB HBM3")
    ('v5e', 'h100')
    """
    return next((name for part, name in _KINDS if part in device_kind), None)


def with_jax_memory(chip: Chip, variables: Mapping[str, str]) -> Chip:
    """Returns a GPU with no more memory than JAX takes under these environment variables.

    >>> h200 = CHIPS["h200"]
    >>> round(with_jax_memory(h200, {}).hbm_bytes / h200.hbm_bytes, 3)
    0.833
    """
    if chip.platform != "gpu":
        return chip
    fraction = float(variables.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75))
    return replace(chip, hbm_bytes=chip.hbm_bytes * min(1.0, fraction / GPU_MEMORY_FRACTION))


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak dense bf16 FLOP/s of one accelerator, or None where it is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3")
    989000000000000.0
    >>> peak_flops("cpu") is None
    True

    Args:
      device_kind: as in `jax.devices()[0].device_kind`.
    """
    name = chip_of_kind(device_kind)
    return None if name in (None, "cpu") else CHIPS[name].flops_bf16
