"""Virtual CPU devices: many devices on one machine, with the XLA flags that make them safe."""

from __future__ import annotations

import importlib.metadata
import os

import jax

from hybrid_jax.errors import UserError

# One that executes and one that launches what comes next: see `_pool_threads`.
THREADS_PER_DEVICE = 2
_COUNT_FLAG = "--xla_force_host_platform_device_count"
_DISABLED_PASSES_FLAG = "--xla_disable_hlo_passes"
# XLA aborts on a bf16 reduction inside a partly manual shard_map when this pass runs on CPU.
_UNSAFE_PASS = "all-reduce-promotion"


def force_cpu_devices(n: int) -> None:
    """Makes JAX run on `n` virtual CPU devices; call it before the first use of JAX.

    `import jax` may come first (in a notebook, say): JAX reads the environment when it starts its
    backend, at the first array or the first `jax.devices()`. Flags that are already in
    `XLA_FLAGS` keep the values they have; only the device count is replaced. `NPROC`, the size of
    XLA's thread pools, keeps its value too unless it is so small that devices could deadlock.
    Calling it again with the same `n` changes nothing. Child processes inherit the setting.

    With several processes these are the devices of this one.

    >>> force_cpu_devices(8)  # not JAX's first use here, but the same 8 devices
    >>> jax.device_count()
    8

    Args:
      n: number of devices, at least 1.

    Raises:
      UserError: `n` is not a positive integer, or JAX has already started otherwise.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise UserError(f"force_cpu_devices({n!r}): the number of devices must be an integer >= 1.")
    environment = cpu_environment(n, dict(os.environ))
    if _backend_has_started():
        _check_running_backend(n, environment)
        return
    os.environ.update(environment)
    # JAX_PLATFORMS and JAX_NUM_CPU_DEVICES are read at `import jax`, which has happened.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", n)


def cpu_environment(n: int, environment: dict[str, str]) -> dict[str, str]:
    """Returns the variables to set on top of `environment` for `n` safe virtual CPU devices.

    Use it to start a child process; `force_cpu_devices` applies it to this one.

    >>> cpu_environment(2, {"XLA_FLAGS": "--xla_dump_to=/tmp/x"})["XLA_FLAGS"].split()[:2]
    ['--xla_dump_to=/tmp/x', '--xla_force_host_platform_device_count=2']
    """
    variables = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": _merge_flags(environment.get("XLA_FLAGS", ""), n),
    }
    if n > 1:  # one device waits for nobody
        variables["NPROC"] = _pool_threads(n, environment.get("NPROC", ""))
    return variables


def _pool_threads(n: int, wanted: str) -> str:
    """How many threads XLA's pools need lest `n` devices deadlock; one per core if that is more.

    A device holds a thread of the client's pool while it executes, also where it waits for others
    in a collective. The launches of the next computation run in the same pool, one for each device,
    and a launch holds its thread while its device has 32 computations to do before. So if the host
    runs ahead, up to n - 1 devices in a collective and n launches behind them wait at once, and the
    last device needs one thread more. With n threads, and with 3 n / 2, small steps on 8 devices
    hung within a few hundred. More than 2 n cost context switches.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    usual = int(wanted) if wanted.strip().isdecimal() else cores or 1
    return str(max(THREADS_PER_DEVICE * n, usual))


def default_environment(environment: dict[str, str]) -> dict[str, str]:
    """Returns `environment` without what `cpu_environment` adds: one CPU device, JAX's defaults.

    Other flags in `XLA_FLAGS` stay; `NPROC`, whoever set it, does not.

    >>> forced = cpu_environment(8, {"XLA_FLAGS": "--xla_dump_to=/tmp/x"})
    >>> default_environment(forced)
    {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_dump_to=/tmp/x'}
    """
    flags, added = _parse(environment.get("XLA_FLAGS", "")), _parse(_merge_flags("", 1))
    flags.pop(_COUNT_FLAG, None)
    if passes := [name for name in _disabled_passes(flags) if name != _UNSAFE_PASS]:
        flags[_DISABLED_PASSES_FLAG] = "=" + ",".join(passes)
    kept = " ".join(name + value for name, value in flags.items() if added.get(name) != value)
    dropped = ("XLA_FLAGS", "NPROC", "JAX_NUM_CPU_DEVICES")
    variables = {name: value for name, value in environment.items() if name not in dropped}
    return {**variables, "JAX_PLATFORMS": "cpu", **({"XLA_FLAGS": kept} if kept else {})}


def _merge_flags(flags: str, n: int) -> str:
    """Adds the device count and the safety flags to the user's `XLA_FLAGS`; idempotent."""
    merged = _parse(flags)
    merged[_COUNT_FLAG] = f"={n}"
    for name, value in _safety_flags().items():
        merged.setdefault(name, f"={value}")
    passes = dict.fromkeys([*_disabled_passes(merged), _UNSAFE_PASS])
    merged[_DISABLED_PASSES_FLAG] = "=" + ",".join(passes)
    return " ".join(name + value for name, value in merged.items())


def _parse(flags: str) -> dict[str, str]:
    """Flag name to "=value", or to "" for a flag without value."""
    return {
        name: equals + value
        for name, equals, value in (flag.partition("=") for flag in flags.split())
    }


def _disabled_passes(flags: dict[str, str]) -> list[str]:
    return [name for name in flags.get(_DISABLED_PASSES_FLAG, "=")[1:].split(",") if name]


def _safety_flags() -> dict[str, str]:
    flags = {
        # Devices share cores, so one may reach a collective minutes after another: the default
        # gives up after 40 s and aborts the process.
        "--xla_cpu_collective_call_terminate_timeout_seconds": "600",
        # Orders a program depth first. Breadth first, collectives that do not depend on each other
        # are in flight at once: each holds a thread of a pool, and devices start them in different
        # orders.
        "--xla_cpu_enable_concurrency_optimized_scheduler": "false",
    }
    # The installed version, because an XLA flag that jaxlib does not know aborts the process.
    major, minor = importlib.metadata.version("jaxlib").split(".")[:2]
    if (int(major), int(minor)) < (0, 12):
        # This fusion segfaults on reductions of rank 7 and 8 (jax issue 39257).
        flags["--xla_cpu_experimental_ynn_fusion_type"] = ""
    return flags


def _backend_has_started() -> bool:
    """Whether JAX has initialised its devices; asking must not initialise them.

    JAX has no public question for this, but it publicly refuses to change the number of CPU
    devices afterwards.
    """
    current = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    try:
        jax.config.update("jax_num_cpu_devices", current + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", current)
    return False


def _check_running_backend(n: int, environment: dict[str, str]) -> None:
    """Raises unless the running backend is the one `force_cpu_devices(n)` would have started."""
    remedy = (
        "Virtual devices are made when JAX starts: restart the kernel (or the process) and call "
        f"force_cpu_devices({n}) before the first use of JAX."
    )
    platform, count = jax.default_backend(), jax.local_device_count()
    if (platform, count) != ("cpu", n):
        raise UserError(
            f"force_cpu_devices({n}): JAX has already started with {count} {platform} "
            f"device{'s' if count > 1 else ''}. {remedy}"
        )
    flags = os.environ.get("XLA_FLAGS", "").split()
    missing = [flag for flag in environment["XLA_FLAGS"].split() if flag not in flags]
    if missing:
        raise UserError(
            f"force_cpu_devices({n}): JAX has already started with {count} cpu devices, but not "
            f"with {' '.join(missing)} in XLA_FLAGS. {remedy}"
        )
