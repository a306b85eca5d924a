"""Several processes of one run on this machine, as on a cluster; never waits for them forever."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hybrid_jax.runtime.cpu import cpu_environment

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_processes(
    arguments: list[str],
    num_processes: int = 2,
    devices: int = 4,
    own: Sequence[list[str]] = (),
    port: int | None = None,
    only: Sequence[int] | None = None,
    variables: Mapping[str, str] | None = None,
) -> list[subprocess.Popen[str]]:
    """Starts `python ARGUMENTS` so often, each with so many virtual devices and JAX_* variables.

    Args:
      own: further arguments of each process.
      port: of the coordinator; None: a free one.
      only: the processes to start; None: all.
      variables: of the environment; they go before all of these.
    """
    environment = {
        **os.environ,
        **cpu_environment(devices, {}),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port or free_port()}",
        "JAX_NUM_PROCESSES": str(num_processes),
        **(variables or {}),
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments, *(own[process] if own else ())],
            env={**environment, "JAX_PROCESS_ID": str(process)},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for process in (range(num_processes) if only is None else only)
    ]


def finish_processes(processes: list, seconds: float = 120) -> list[subprocess.CompletedProcess]:
    """Waits for all of them; kills what is left when the time is over, and says what it wrote."""
    end, results, late = time.monotonic() + seconds, [], False
    for process in processes:
        try:
            out, err = process.communicate(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            late = True
            process.kill()
            out, err = process.communicate()
        results.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    if late:
        told = "\n".join(f"{r.returncode}: {r.stdout[-1500:]}{r.stderr[-3000:]}" for r in results)
        raise AssertionError(f"not done in {seconds} s:\n{told}")
    return results
