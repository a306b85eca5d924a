"""What goes wrong on one process of a run concerns all: they continue together, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from hybrid_jax.checkpoint.manifest import Damaged
from hybrid_jax.errors import RunError, UserError

T = TypeVar("T")


def together(check: Callable[[], T]) -> T:
    """Returns what `check` returns on this process; all processes must call it.

    >>> together(lambda: 3)
    3

    Raises:
      Damaged: `check` raised it, on this process or on another.
    """
    result = damage = None
    try:
        result = check()
    except Damaged as found:
        damage = str(found)
    if damage := shared(damage):
        raise Damaged(damage)
    return result  # pyright: ignore[reportReturnType]


def shared(problem: str | None) -> str | None:
    """Returns this process's problem, or else that another has one; None if nobody has.

    It waits until all processes have called it.
    """
    others = _where(problem is not None)
    if problem is None and others:
        return f"process {others[0]} reported the failure; see its log"
    return problem


def raise_shared(problem: str | None, error: Callable[[str], UserError | RunError]) -> None:
    """Raises `error(problem)` if any process has a problem; those without name one that has.

    It waits until all processes have called it.
    """
    if found := shared(problem):
        raised = error(found)
        raised.found_elsewhere = problem is None
        raise raised


def anywhere(condition: bool) -> bool:
    """Whether a condition holds on any process; waits until all have called it.

    >>> anywhere(False)
    False
    """
    return bool(_where(condition))


def from_first(number: int) -> int:
    """Returns the number, of 32 bits, that the first process calls it with.

    >>> from_first(7)
    7
    """
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def wait_for_all(what: str) -> None:
    """Returns when all processes have called it with the same words."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _where(condition: bool) -> list[int]:
    """The processes on which it holds."""
    if jax.process_count() == 1:
        return [0] if condition else []
    return np.flatnonzero(multihost_utils.process_allgather(np.int32(condition))).tolist()
