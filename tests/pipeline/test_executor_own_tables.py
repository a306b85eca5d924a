"""The executor runs every table that `check_runs` lets through, however odd: equal to a loop."""

import random

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_schedule import random_lockstep
from test_executor import pipelined, plain, problem

from hybrid_jax.pipeline.runnable import check_runs
from hybrid_jax.pipeline.schedules import Schedule


def odd_table(stages, microbatches, chunks, rng) -> Schedule:
    tasks = random_lockstep(stages, microbatches, chunks, rng)
    return Schedule.from_tasks(tasks, stages=stages, microbatches=microbatches, chunks=chunks)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.randoms(use_true_random=False))
def test_any_table_without_waiting_messages_is_let_through(stages, microbatches, chunks, rng):
    chunks = chunks if stages > 1 else 1
    table = odd_table(stages, microbatches, chunks, rng)
    check_runs(table, stages, microbatches, chunks)


@pytest.mark.parametrize("skip_bubbles", [True, False])
@pytest.mark.parametrize(("seed", "sizes"), [(0, (3, 4, 1)), (1, (2, 3, 2)), (2, (1, 3, 1))])
def test_an_odd_table_equals_a_plain_loop(seed, sizes, skip_bubbles):
    """F and B in random ticks, some in segments of one tick, heads later than their F."""
    table = odd_table(*sizes, random.Random(seed))
    assert len(table.segments()) > 3
    arguments = problem(num_layers=2 * table.stages * table.chunks, microbatches=sizes[1])
    expected = jax.device_get(plain(*arguments))
    found = pipelined(table, *arguments, skip_bubbles=skip_bubbles, bubble_value=np.nan)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
