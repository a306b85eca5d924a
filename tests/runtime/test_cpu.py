"""`force_cpu_devices`, each case in a process of its own because JAX starts only once."""

import os
import subprocess
import sys

import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.runtime.cpu import cpu_environment, default_environment, force_cpu_devices


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh interpreter whose environment has none of this session's flags."""
    forced = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "NPROC")
    inherited = {name: value for name, value in os.environ.items() if name not in forced}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_devices_after_import_and_with_user_flags():
    result = run(
        """
import jax
from hybrid_jax.runtime.cpu import force_cpu_devices
import os
force_cpu_devices(3)
force_cpu_devices(2)  # still before JAX starts: the last call counts
flags = os.environ["XLA_FLAGS"]
force_cpu_devices(2)
print(jax.default_backend(), jax.device_count(), int((jax.numpy.ones(4) * 2).sum()))
force_cpu_devices(2)
assert os.environ["XLA_FLAGS"] == flags
print(flags)
print(os.environ["NPROC"])
""",
        XLA_FLAGS="--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=5 "
        "--xla_disable_hlo_passes=dce --xla_cpu_collective_call_terminate_timeout_seconds=900",
        NPROC="48",
    )
    assert result.returncode == 0, result.stderr
    backend, flags, nproc = result.stdout.splitlines()
    assert backend == "cpu 2 8"
    assert flags.split()[:4] == [
        "--xla_cpu_enable_fast_math=false",
        "--xla_force_host_platform_device_count=2",
        "--xla_disable_hlo_passes=dce,all-reduce-promotion",
        "--xla_cpu_collective_call_terminate_timeout_seconds=900",
    ]
    assert "--xla_cpu_enable_concurrency_optimized_scheduler=false" in flags
    assert nproc == "48"


CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize(("devices", "threads"), [(8, max(16, CORES)), (1, CORES)])
def test_two_threads_for_each_device_although_jax_is_imported(devices, threads):
    result = run(
        f"""
import jax
from hybrid_jax.runtime.cpu import force_cpu_devices
from pathlib import Path
force_cpu_devices({devices})
jax.devices()
names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
print(sum("XLAEigen" in name for name in names))
"""
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == threads


@pytest.mark.parametrize(
    ("wanted", "threads"), [("8", 16), ("15", 16), ("48", 48), ("many", 16), ("", 16)]
)
def test_a_pool_in_which_devices_deadlock_is_enlarged(wanted, threads):
    assert cpu_environment(8, {"NPROC": wanted})["NPROC"] == str(max(threads, CORES))


def test_one_device_has_the_pool_that_the_user_wants():
    assert "NPROC" not in cpu_environment(1, {"NPROC": "1"})


def test_the_default_environment_undoes_what_was_forced():
    flags = "--xla_dump_to=/tmp/x --xla_disable_hlo_passes=dce"
    user = {"XLA_FLAGS": flags, "HOME": "/root", "JAX_ENABLE_X64": "0"}
    forced = {**user, **cpu_environment(8, user), "JAX_NUM_CPU_DEVICES": "8"}
    assert default_environment(forced) == {**user, "JAX_PLATFORMS": "cpu"}
    assert default_environment(cpu_environment(8, {})) == {"JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("jax.devices()", "already started with 1 cpu device."),
        ("jax.config.update('jax_num_cpu_devices', 4); jax.devices()", "but not with --xla"),
    ],
)
def test_too_late(start, words):
    result = run(
        f"""
import jax, os
{start}
from hybrid_jax.runtime.cpu import force_cpu_devices
try:
    force_cpu_devices(4)
except ValueError as error:
    print(error)
    assert "XLA_FLAGS" not in os.environ
""",
        JAX_PLATFORMS="cpu",
    )
    assert result.returncode == 0, result.stderr
    message = result.stdout.strip()
    assert "\n" not in message
    assert words in message
    assert "restart the kernel (or the process) and call force_cpu_devices(4)" in message


def test_environment_for_a_child_process():
    environment = cpu_environment(6, {})
    result = run("import jax; print(jax.default_backend(), jax.device_count())", **environment)
    assert result.stdout.split() == ["cpu", "6"], result.stderr
    assert cpu_environment(6, environment) == environment


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "8"])
def test_bad_count(n):
    with pytest.raises(UserError, match="must be an integer >= 1"):
        force_cpu_devices(n)
