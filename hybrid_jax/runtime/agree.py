"""Decisions that all processes of a run make alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_jax.runtime.distributed import join_initialized
from hybrid_jax.runtime.fields import flatten_fields
from hybrid_jax.runtime.group import current_group


def check_agreement(fields: Any) -> None:
    """Compares what must be the same in all processes; with one process it does nothing.

    All processes call it equally often. `build` compares the config, the data, the versions and the
    devices; a script of your own can compare what else it depends on. Where the script has called
    `jax.distributed.initialize` itself, the processes are introduced to each other here and from
    then on end together, see `Group`.

    >>> check_agreement({"tokenizer": "a1b2"})

    Args:
      fields: a mapping by name, or a dataclass; nested ones are compared field by field.

    Raises:
      UserError: they differ; the message names the fields, the values and the processes.
      TemporaryError: another process did not come.
    """
    group = current_group() or join_initialized()
    if group is not None:
        group.agree(flatten_fields(fields))


def device_layout() -> Mapping[str, Any]:
    """Returns what the devices of a process are, to be compared; it starts them.

    >>> device_layout()["local devices"]
    8
    """
    devices = jax.local_devices()
    kinds = sorted({device.device_kind for device in devices})
    return {
        "platform": devices[0].platform,
        "device kind": " and ".join(kinds),
        "local devices": len(devices),
    }


class Agreement:
    """Logical OR across processes, with the same result on all of them at the same call.

    It is called once in every step, by every process. The votes of a call are added up on the
    devices, behind the step that was dispatched before; the next call returns whether there was a
    yes among them. So no process waits for another more than the step does anyway. With one
    process the vote is returned at once.

    >>> agreed = Agreement()
    >>> agreed(False), agreed(True)
    (False, True)
    """

    def __init__(self) -> None:
        self._num_processes = jax.process_count()
        if self._num_processes == 1:
            return
        firsts = [jax.local_devices(process)[0] for process in range(self._num_processes)]
        mesh = Mesh(np.array(firsts), ("process",))
        replicated, split = (
            NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("process",))
        )
        # Made once: a vote is then a dispatch, without an upload.
        self._votes = [
            jax.make_array_from_callback(
                (self._num_processes,), split, lambda _, vote=vote: np.full(1, vote, np.int32)
            )
            for vote in (0, 1)
        ]
        self._count = jax.jit(lambda votes: votes.sum(), out_shardings=replicated)
        self._pending = self._votes_of(False)

    def __call__(self, vote: bool) -> bool:
        """Votes; returns whether any process voted yes at the previous call."""
        if self._num_processes == 1:
            return vote
        pending, self._pending = self._pending, self._votes_of(vote)
        return int(pending) > 0

    def _votes_of(self, vote: bool) -> jax.Array:
        return self._count(self._votes[int(vote)])
