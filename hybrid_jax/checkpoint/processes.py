"""What goes wrong on one process of a run is the concern of all: they go on together, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from hybrid_jax.checkpoint.manifest import Damaged

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
    if jax.process_count() == 1:
        return problem
    others = np.flatnonzero(multihost_utils.process_allgather(np.int32(problem is not None)))
    if problem is None and others.size:
        return f"process {others[0]} has found it, and says why"
    return problem
