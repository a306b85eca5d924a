"""The order of rows: whole epochs, exact shares, and the same for ever."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.data.order import Proportions, row_order


@settings(deadline=None)
@given(num_rows=st.integers(1, 60), seed=st.integers(0, 2**70))
def test_every_row_once_per_epoch(num_rows, seed):
    order = row_order([num_rows], [1.0], seed)
    for epoch in range(3):
        rows = [order[index] for index in range(epoch * num_rows, (epoch + 1) * num_rows)]
        assert sorted(rows) == list(range(num_rows))


def test_epochs_seeds_and_sources_differ():
    def epoch(order, number, size=50):
        return [order[index] for index in range(number * size, (number + 1) * size)]

    order = row_order([50], [1.0], 0)
    mixed = row_order([50, 50], [0.5, 0.5], 0)
    second = [mixed[index] - 50 for index in range(1, 100, 2)]
    orders = [
        epoch(order, 0),
        epoch(order, 1),
        epoch(row_order([50], [1.0], 1), 0),
        epoch(row_order([50], [1.0], 1), 1),
        second,
    ]
    for one, other in itertools.combinations(orders, 2):
        assert np.mean(np.array(one) == other) < 0.2


def test_sources_of_a_mixture_have_epochs_of_their_own():
    order = row_order([6, 4], [0.75, 0.25], 3)
    rows = [order[index] for index in range(48)]
    large, small = [row for row in rows if row < 6], [row for row in rows if row >= 6]
    assert all(sorted(large[i : i + 6]) == list(range(6)) for i in range(0, 36, 6))
    assert all(sorted(small[i : i + 4]) == list(range(6, 10)) for i in range(0, 12, 4))


@settings(deadline=None)
@given(
    shares=st.lists(st.integers(1, 1000), min_size=1, max_size=5),
    index=st.integers(0, 10**12),
)
def test_shares_are_exact_and_each_row_of_a_source_comes_once(shares, index):
    total = sum(shares)
    mixture = Proportions([share / total for share in shares])
    next_row = {}
    for k in range(index, index + 200):
        source, row = mixture[k]
        assert row == next_row.setdefault(source, row)
        next_row[source] += 1
        # All rows of the source up to here, of k + 1 altogether. Weights are taken to 9 decimals.
        slack = len(shares) + (k + 1) * 1e-9
        assert abs(row + 1 - (k + 1) * shares[source] / total) < slack


def test_shares_are_exact_over_a_period():
    mixture = Proportions([0.7, 0.2, 0.1])
    counts = np.bincount([mixture[k][0] for k in range(10_000)])
    assert counts.tolist() == [7000, 2000, 1000]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([1000], [1.0], 0), [233, 815, 962, 246, 83, 873]),
        (([1000, 500], [0.75, 0.25], 7), [661, 759, 214, 1170, 404, 638]),
    ],
)
def test_the_order_is_the_one_of_the_first_release(arguments, expected):
    """Runs resume with whatever release of grain is installed: it must not change its shuffle."""
    order = row_order(*arguments)
    assert [order[index] for index in (0, 1, 2, 3, 1000, 10**12)] == expected
