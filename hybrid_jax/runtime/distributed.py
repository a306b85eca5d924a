"""Joining the other processes of a run, where the environment says that there are any."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from hybrid_jax.errors import UserError

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# What `srun` and Open MPI set, but `sbatch` does not: a batch script is one process.
_CLUSTER_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def initialize_from_environment(environment: Mapping[str, str] = os.environ) -> int:
    """Joins a run of several processes and returns how many they are; call it before JAX starts.

    Either JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID
    are set, or JAX finds out by itself under `srun` and `mpirun`. Otherwise the run has one process
    and nothing is done.

    Raises:
      UserError: only some of the three variables are set, or they do not fit each other.
    """
    if jax.distributed.is_initialized():
        return jax.process_count()
    found = max(int(environment.get(name, 1)) for name in _CLUSTER_COUNTS)
    given = [name for name in (_ADDRESS, _COUNT, _INDEX) if environment.get(name)]
    if given == [_ADDRESS, _COUNT, _INDEX]:
        count, index = _count_and_index(environment)
        _join(environment[_ADDRESS], count, index)
        return count
    if found > 1 and given in ([], [_ADDRESS]):
        _join(environment.get(_ADDRESS))
        return found
    if given:
        missing = [name for name in (_ADDRESS, _COUNT, _INDEX) if name not in given]
        raise UserError(
            f"{' and '.join(given)} set without {' and '.join(missing)}: a run of several "
            "processes needs all three in every process; one process needs none."
        )
    return 1


def _join(address: str | None, count: int | None = None, index: int | None = None) -> None:
    # JAX would catch SIGTERM from here on; a process that does not train yet is to die of it, and
    # one that does has `StopSignal`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(address, count, index)


def _count_and_index(environment: Mapping[str, str]) -> tuple[int, int]:
    count, index = environment[_COUNT], environment[_INDEX]
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise UserError(
            f"{_INDEX}={index} with {_COUNT}={count}: processes are numbered from 0 to their "
            "number minus one."
        )
    host, _, port = environment[_ADDRESS].rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(
            f"{_ADDRESS}={environment[_ADDRESS]}: give host and port of process 0, such as "
            "node0:12345."
        )
    return int(count), int(index)
