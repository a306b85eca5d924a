"""GPUs as XLA's compiler wants them described where there is none to ask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuTarget:
    """What XLA's code generation and scheduling depend on.

    Attributes:
      description: the name that JAX gives the device.
      capability: CUDA compute capability, (major, minor).
      cores: streaming multiprocessors.
      clock_ghz: boost clock.
      memory_bytes: all of the device's, as its driver reports it.
      bandwidth: of that memory, bytes/s.
      l2_bytes: of the second-level cache.
      shared_bytes: shared memory of one core; a block may opt in to all but 1 KiB.
      fpus_per_core: f32 lanes.
    """

    description: str
    capability: tuple[int, int]
    cores: int
    clock_ghz: float
    memory_bytes: int
    bandwidth: int
    l2_bytes: int
    shared_bytes: int = 233472
    fpus_per_core: int = 128

    def to_text(self) -> str:
        """Returns the text of a `GpuTargetConfigProto`.

        >>> GPU_TARGETS["h200"].to_text().splitlines()[-1]
        'device_description_str: "NVIDIA H200"'
        """
        major, minor = self.capability
        return _TEMPLATE.format(
            **vars(self), major=major, minor=minor, optin_bytes=self.shared_bytes - 1024
        )


# The limits are the same for every chip below (CUDA programming guide, compute capabilities 8.0 to
# 10.0); the version of cuDNN is the oldest that the plugin takes.
_TEMPLATE = """gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {cores}
  fpus_per_core: {fpus_per_core}
  clock_rate_ghz: {clock_ghz}
  device_memory_size: {memory_bytes}
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_bytes}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {optin_bytes}
  shared_memory_per_core: {shared_bytes}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
device_description_str: "{description}"
"""

# What drivers report, from OpenXLA's collection (openxla/xla, xla/backends/gpu/target_config/specs)
# but for h100-nvl: nvidia-smi shows 95830 MiB, of which CUDA gives programs 93 GiB, at 3.94 TB/s;
# cores and clock from its product brief (PB-11773-001).
GPU_TARGETS: dict[str, GpuTarget] = {
    "a100": GpuTarget(
        "NVIDIA A100-SXM4-80GB",
        (8, 0),
        cores=108,
        clock_ghz=1.41,
        memory_bytes=85100068864,
        bandwidth=2039040000000,
        l2_bytes=41943040,
        shared_bytes=167936,
        fpus_per_core=64,
    ),
    "h100": GpuTarget(
        "NVIDIA H100 80GB HBM3",
        (9, 0),
        cores=132,
        clock_ghz=1.98,
        memory_bytes=84942979072,
        bandwidth=3352320000000,
        l2_bytes=52428800,
    ),
    "h100-nvl": GpuTarget(
        "NVIDIA H100 NVL",
        (9, 0),
        cores=132,
        clock_ghz=1.785,
        memory_bytes=93 * 2**30,
        bandwidth=3938000000000,
        l2_bytes=62914560,
    ),
    "h100-pcie": GpuTarget(
        "NVIDIA H100 PCIe",
        (9, 0),
        cores=114,
        clock_ghz=1.755,
        memory_bytes=84942979072,
        bandwidth=2039040000000,
        l2_bytes=52428800,
    ),
    "h200": GpuTarget(
        "NVIDIA H200",
        (9, 0),
        cores=132,
        clock_ghz=1.98,
        memory_bytes=151397597184,
        bandwidth=4800000000000,
        l2_bytes=52428800,
    ),
    "b200": GpuTarget(
        "NVIDIA B200",
        (10, 0),
        cores=148,
        clock_ghz=1.965,
        memory_bytes=191514411008,
        bandwidth=7672320000000,
        l2_bytes=132644864,
    ),
}
