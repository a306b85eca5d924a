"""Joining the other processes of a run, where the environment says that there are any."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from hybrid_jax.errors import RunError, UserError
from hybrid_jax.runtime import compat
from hybrid_jax.runtime.attendance import attend
from hybrid_jax.runtime.group import Group, current_group, join_group
from hybrid_jax.runtime.relay import start_relay
from hybrid_jax.runtime.roll_call import gather, is_loopback, listen

JOIN_SECONDS = 300.0
PEER_SECONDS = 30.0
_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# What `srun` and Open MPI set, but `sbatch` does not: a batch script is one process.
_CLUSTER_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_MEETING_PLACE = "hybrid_jax/roll_call"


def initialize_from_environment(
    environment: Mapping[str, str] = os.environ,
    join_seconds: float = JOIN_SECONDS,
    peer_seconds: float = PEER_SECONDS,
) -> int:
    """Joins a run of several processes and returns how many they are; call it before JAX starts.

    Either JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID
    are set, or JAX finds out by itself under `srun` and `mpirun`, or `jax.distributed` has been
    initialized before. Otherwise the run has one process and nothing is done.

    From here on the processes end together: see `Group`.

    Args:
      join_seconds: how long to wait for the other processes.
      peer_seconds: how long one of them may be silent.

    Raises:
      UserError: only some of the three variables are set, or they do not fit each other or those
        of another process, or the port is in use.
      TemporaryError: a process is missing.
    """
    if (group := current_group()) is not None:
        return group.count
    if jax.distributed.is_initialized():
        group = join_initialized(join_seconds, peer_seconds)
        return 1 if group is None else group.count
    found = max(int(environment.get(name, 1)) for name in _CLUSTER_COUNTS)
    given = [name for name in (_ADDRESS, _COUNT, _INDEX) if environment.get(name)]
    if given == [_ADDRESS, _COUNT, _INDEX]:
        count, index = _count_and_index(environment)
        if count > 1:
            _join(environment[_ADDRESS], count, index, join_seconds, peer_seconds)
        return count
    if found > 1 and given in ([], [_ADDRESS]):
        _initialize(join_seconds, peer_seconds, coordinator_address=environment.get(_ADDRESS))
        join_initialized(join_seconds, peer_seconds)
        return found
    if given:
        missing = [name for name in (_ADDRESS, _COUNT, _INDEX) if name not in given]
        raise UserError(
            f"{' and '.join(given)} set without {' and '.join(missing)}: a run of several "
            "processes needs all three in every process; one process needs none."
        )
    return 1


def join_initialized(
    join_seconds: float = JOIN_SECONDS, peer_seconds: float = PEER_SECONDS
) -> Group | None:
    """Introduces the processes of an initialized `jax.distributed` to each other.

    Process 0 listens on a port of its own, which JAX's key-value store makes known.

    Returns:
      None in a run of one process.
    """
    index, count = compat.process_index_and_count()
    if not jax.distributed.is_initialized() or count == 1:
        return None
    host, _ = _host_and_port(compat.coordinator_address())
    if index == 0:
        listener = listen(host, 0)
        compat.publish(_MEETING_PLACE, str(listener.getsockname()[1]))
        meeting = gather(listener, count, join_seconds)
    else:
        port = int(compat.look_up(_MEETING_PLACE, join_seconds))
        meeting = attend(host, port, index, count, join_seconds)
    return join_group(Group(index, *meeting, peer_seconds))


def _join(address: str, count: int, index: int, join_seconds: float, peer_seconds: float) -> None:
    """Meets the others on the coordinator's port, which JAX then takes."""
    host, port = _host_and_port(address)
    bind_address = None
    if index == 0:
        meeting = gather(listen(host, port), count, join_seconds)
        if is_loopback(host) and not os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
            # Then nobody elsewhere is to reach it.
            bind_address = f"127.0.0.1:{port}"
    else:
        meeting = attend(host, port, index, count, join_seconds)
        # With mutual TLS the coordinator's certificate is checked against its own address.
        if not getattr(jax.config, "jax_mtls_cert_file", None):
            address = start_relay(host, port)
    join_group(Group(index, *meeting, peer_seconds))
    _initialize(
        join_seconds,
        peer_seconds,
        coordinator_address=address,
        num_processes=count,
        process_id=index,
        coordinator_bind_address=bind_address,
    )


def _initialize(join_seconds: float, peer_seconds: float, **arguments) -> None:
    # JAX would catch SIGTERM from here on; a process that does not train yet is to die of it, and
    # one that does has `StopSignal`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            # All of these end in an abort that names nobody: the group's own limits come first.
            initialization_timeout=int(max(300, 2 * join_seconds)),
            heartbeat_timeout_seconds=int(max(100, 4 * peer_seconds)),
            shutdown_timeout_seconds=int(max(300, 4 * peer_seconds)),
            **arguments,
        )
    except (RuntimeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise RunError(f"jax.distributed cannot be initialized: {first}") from error


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)  # [::1]:12345 has an IPv6 address


def _count_and_index(environment: Mapping[str, str]) -> tuple[int, int]:
    count, index = environment[_COUNT], environment[_INDEX]
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise UserError(
            f"{_INDEX}={index} with {_COUNT}={count}: processes are numbered from 0 to their "
            "number minus one."
        )
    host, _, port = environment[_ADDRESS].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"{_ADDRESS}={environment[_ADDRESS]}: give host and port of process 0, such as "
            "node0:12345."
        )
    return int(count), int(index)
