"""Which row comes when: shuffled epochs of every source, mixed by weight."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from fractions import Fraction

import grain
import numpy as np


def row_order(num_rows: Sequence[int], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Returns the endless order of rows; rows of several sources are numbered through.

    Each source goes through all of its rows in a new random order in every epoch of its own, and
    epochs join without a gap. Nothing is stored: a permutation is computed where it is asked for.

    >>> order = row_order([2, 3], [0.5, 0.5], seed=0)
    >>> [row < 2 for row in (order[index] for index in range(6))]
    [True, False, True, False, True, False]
    >>> sorted(order[index] for index in (1, 3, 5))
    [2, 3, 4]

    Args:
      num_rows: rows of each source.
      weights: share of each source, positive.
      seed: of the order, at least 0.
    """
    ends = np.cumsum(num_rows).tolist()
    # Sources of one length must not be shuffled alike.
    seeds = [np.random.SeedSequence([seed, i]).generate_state(1)[0] for i in range(len(ends))]
    orders = [
        grain.MapDataset.range(end - size, end).shuffle(int(seed)).repeat()
        for end, size, seed in zip(ends, num_rows, seeds, strict=True)
    ]
    if len(orders) == 1:
        return orders[0]
    return grain.MapDataset.select_from_datasets(orders, Proportions(weights))


class Proportions(grain.transforms.DatasetSelectionMap):
    """Which source gives the k-th row, and how many rows it gave before.

    The rows of a source are spread evenly: of the first k rows, its share is exact but for less
    than one row for each source. (`grain.MapDataset.mix` does the same with weights rounded to
    1 % of the smallest: 0.7 and 0.3 become 233 : 100.)

    >>> thirds = Proportions([0.75, 0.25])
    >>> [thirds[k] for k in range(5)]
    [(0, 0), (0, 1), (0, 2), (1, 0), (0, 3)]

    Args:
      weights: positive, exact to 9 decimal places.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        shares = [Fraction(weight).limit_denominator(10**9) for weight in weights]
        unit = math.lcm(*(share.denominator for share in shares))
        self._shares = [int(share * unit) for share in shares]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        # Rows before this one and up to it, of the sources not looked at yet.
        before, upto, total = index, index + 1, sum(self._shares)
        for source, share in enumerate(self._shares):
            rest = total - share
            before_rest, upto_rest = before * rest // total, upto * rest // total
            if before - before_rest != upto - upto_rest:
                return source, before - before_rest
            before, upto, total = before_rest, upto_rest, rest
        raise AssertionError("one source always gives the row")
