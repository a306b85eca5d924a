"""Which stage each virtual stage, one group of consecutive layers, lives on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hybrid_jax.errors import UserError


def ring(stages: int, chunks: int) -> tuple[int, ...]:
    """Returns the placement that the executor runs: virtual stage `chunk * stages + s` on `s`.

    >>> ring(stages=2, chunks=2)
    (0, 1, 0, 1)
    """
    return tuple(range(stages)) * chunks


def check_placement(placement: Sequence[int], stages: int, chunks: int) -> tuple[int, ...]:
    """Returns `placement` as a tuple, if every stage has `chunks` of the virtual stages.

    >>> check_placement([0, 1, 1, 0], stages=2, chunks=2)  # a V: down the stages and up again
    (0, 1, 1, 0)

    Raises:
      UserError: it has another length, or gives a stage more or fewer.
    """
    placed = tuple(placement)
    whole = all(isinstance(stage, (int, np.integer)) for stage in placed)
    if not whole or sorted(placed) != sorted(ring(stages, chunks)):
        raise UserError(
            f"placement={placed} must name each of the stages 0 to {stages - 1} chunks={chunks} "
            f"times, in the order of the layers: the ring is {ring(stages, chunks)}."
        )
    return tuple(int(stage) for stage in placed)


def virtual_stages(placement: Sequence[int], stages: int) -> np.ndarray:
    """Returns `[stages, chunks]`, the virtual stages of each stage in the order of their layers.

    >>> virtual_stages((0, 1, 1, 0), stages=2).tolist()
    [[0, 3], [1, 2]]
    """
    return np.argsort(np.asarray(placement), kind="stable").reshape(stages, -1)
