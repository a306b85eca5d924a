"""The one place that asks JAX for what it has no public name for."""

from __future__ import annotations

from typing import Any

# Of `jax.distributed`: who this process is, and the key-value store of the coordination service.
from jax._src.distributed import global_state


def process_index_and_count() -> tuple[int, int]:
    """Returns the index of this process and how many there are, without starting the devices."""
    return global_state.process_id, global_state.num_processes


def coordinator_address() -> str:
    """Returns the host and port at which the coordination service of process 0 is reached."""
    assert global_state.coordinator_address is not None, "jax.distributed is initialized"
    return global_state.coordinator_address


def publish(key: str, value: str) -> None:
    """Stores a value that all processes can read."""
    _store().key_value_set(key, value)


def look_up(key: str, seconds: float) -> str:
    """Returns a value that another process stores, waiting for it so long."""
    return _store().blocking_key_value_get(key, int(1000 * seconds))


def _store() -> Any:
    return global_state.client
