"""The compilers for devices that are not here: whether they are installed, and what they need."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import re
from collections.abc import Mapping
from typing import Any

from hybrid_jax.errors import UserError
from hybrid_jax.hardware.chips import CHIPS
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.hardware.gpu_targets import GPU_TARGETS
from hybrid_jax.hardware.topologies import host_bounds, wrapped_dims
from hybrid_jax.runtime.cpu import cpu_environment

MAX_CPU_DEVICES = 64  # virtual devices that one process starts for a compilation


def check_compiler(cluster: Cluster) -> None:
    """Raises a UserError, with what to install, unless programs for `cluster` can be compiled."""
    chip = cluster.chip
    if chip.name not in CHIPS:
        raise UserError(
            f"no compiler knows the chip {chip.name!r}: leave 'name' out of its description, and "
            "the chip that it is based on is compiled for."
        )
    match chip.platform:
        case "tpu":
            _check_libtpu()
        case "gpu":
            _check_cuda()
        case _ if cluster.num_devices > MAX_CPU_DEVICES:
            raise UserError(
                f"verifying compiles for at most {MAX_CPU_DEVICES} virtual CPU devices, not "
                f"{cluster.num_devices}: plan for fewer, or for the accelerators that you will use."
            )


def environment(cluster: Cluster, base: Mapping[str, str]) -> dict[str, str]:
    """Returns `base` with what a process must find there before it starts JAX.

    >>> environment(Cluster.of("v5e:4x4"), {})["TPU_ACCELERATOR_TYPE"]
    'v5litepod-16'
    """
    if cluster.chip.platform == "cpu":
        return {**base, **cpu_environment(cluster.num_devices, dict(base))}
    if cluster.chip.platform == "gpu":
        # The plugin is asked to compile only, without the CUDA libraries that running takes.
        return {**base, "JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    per_chip = {"v4": "v4-{cores}", "v5p": "v5p-{cores}", "v5e": "v5litepod-{chips}"}
    chips = math.prod(cluster.shape)
    name = per_chip.get(cluster.chip.name, "v6e-{chips}").format(chips=chips, cores=2 * chips)
    return {
        **base,
        "JAX_PLATFORMS": "cpu",
        # Asks no metadata server and no other host.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": name,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing runs, so several processes may compile
    }


def absent_devices(cluster: Cluster) -> list[Any]:
    """Returns devices to make a mesh of and compile for; they need not be there.

    The process must have started with `environment(cluster, ...)`.

    Raises:
      UserError: libtpu refuses the slice.
    """
    import jax
    from jax.experimental import topologies

    if cluster.chip.platform == "cpu":
        return jax.devices("cpu")
    if cluster.chip.platform == "gpu":
        # JAX counts each machine as a slice: it tells fast links by what shares a boot.
        per_host = min(cluster.num_devices, cluster.chip.host)
        options: dict[str, Any] = {
            "topology_name": cluster.chip.name,
            "target_config": GPU_TARGETS[cluster.chip.name].to_text(),
            "topology": f"{cluster.hosts}x1x{per_host}",
        }
        return list(topologies.get_topology_desc(platform="cuda", **options).devices)
    try:
        topology = topologies.get_topology_desc(platform="tpu", **tpu_topology(cluster))
    except jax.errors.JaxRuntimeError as error:
        problem = str(error).partition("\n")[0]
        raise UserError(
            f"libtpu {_version('libtpu')} refuses {cluster.describe()!r}: {problem}: compile for a "
            "slice that Cluster.of(...) accepts."
        ) from error
    return list(topology.devices)


def tpu_topology(cluster: Cluster) -> dict[str, Any]:
    """Returns what libtpu must be told to compile for the machine that a slice is.

    By default it assumes that no dim closes to a ring; XLA then compiles a gather over such a dim
    as an all-reduce of zero-padded arrays, twice the bytes.

    >>> tpu_topology(Cluster.of("v5e:8x16x2"))["wrap"]
    (False, True, False)
    """
    chip, shape = cluster.chip, cluster.shape
    missing = 3 - len(shape)  # libtpu always wants three numbers
    return {
        "topology_name": f"{chip.name}:{'x'.join(map(str, shape))}",
        # One device for both cores of a chip, as on Cloud TPU; v5e and v6e have one core.
        "chip_config_name": "megacore" if chip.torus_dims == 3 else "default",
        "chips_per_host_bounds": (*host_bounds(shape, chip), *(1,) * missing),
        "num_slices": cluster.slices,
        "wrap": (*wrapped_dims(shape, chip), *(False,) * missing),
    }


def _check_libtpu() -> None:
    pinned = _pinned("libtpu")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"compiling for TPU needs libtpu {pinned}, which is absent: pip install "
            "'hybrid-jax[aot]'."
        )
    found = _version("libtpu")
    if found is not None and not f"{found}.".startswith(pinned.removesuffix("*")):
        raise UserError(
            f"libtpu {found} is installed, but jax {_version('jax')} needs {pinned}: pip install "
            f"'libtpu=={pinned}'."
        )


def _check_cuda() -> None:
    jaxlib = _version("jaxlib")
    names = {
        major: (f"jax-cuda{major}-plugin", f"jax-cuda{major}-pjrt", f"nvidia-cudnn-cu{major}")
        for major in (13, 12)
    }
    commands = {
        major: f"pip install --no-deps {plugin}=={jaxlib} {pjrt}=={jaxlib} '{cudnn}>=9.12,<10'"
        for major, (plugin, pjrt, cudnn) in names.items()
    }
    major = next((major for major in names if _is_there(f"jax_plugins.xla_cuda{major}")), None)
    if major is None:
        raise UserError(
            f"compiling for GPU needs JAX's CUDA plugin, which is absent: {commands[13]} (no other "
            "CUDA library), or pip install 'hybrid-jax[aot-cuda]'."
        )
    found = _version(names[major][0])
    if found is not None and found != jaxlib:
        raise UserError(
            f"{names[major][0]} {found} is installed, but jaxlib is {jaxlib}: {commands[major]}."
        )
    if not _is_there("nvidia.cudnn"):
        raise UserError(
            "compiling for GPU needs cuDNN, whose version decides how attention is computed: "
            f"{commands[major]}."
        )


def _pinned(package: str) -> str:
    """The versions of `package` that the installed jax asks for, such as "0.0.42.*"."""
    found = (
        re.match(rf"{package}==([\w.*]+)", text)
        for text in importlib.metadata.requires("jax") or ()
    )
    return next((match[1] for match in found if match), "*")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package it is in
        return False
