"""Time and bubble of the simulated schedules against the papers' formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.schedules import Schedule, forward_only, schedule


@settings(deadline=None)
@given(st.from_type(Schedule), st.floats(0.1, 10), st.floats(0, 10))
def test_bubble_is_s_minus_1_over_vm(table, f_cost, b_cost):
    """Narayanan et al. 2021, section 2.2; in any ratio of the costs."""
    simulation = table.simulate(f_cost, b_cost)
    expected = (table.stages - 1) / (table.chunks * table.microbatches)
    np.testing.assert_allclose(simulation.bubble_fraction, expected, atol=1e-12)


def test_times_of_one_schedule_by_hand():
    simulation = schedule("1f1b", stages=2, microbatches=3).simulate(f_cost=1, b_cost=2)
    np.testing.assert_allclose(simulation.tick_ends, [1, 4, 7, 10, 12])
    np.testing.assert_allclose(simulation.busy, [9, 9])
    assert simulation.total == 12


def test_the_head_is_shared_by_the_stages():
    table = schedule("1f1b", stages=2, microbatches=3)
    with_head = table.simulate(head_cost=4.0)
    np.testing.assert_allclose(with_head.busy - table.simulate().busy, [6, 6])
    np.testing.assert_allclose(with_head.total - table.simulate().total, 6)


def test_chunks_share_the_cost_of_a_stage():
    simulation = schedule("interleaved", stages=2, microbatches=4, chunks=2).simulate()
    np.testing.assert_allclose(simulation.busy, [12, 12])


def test_forward_only_costs_no_backward():
    assert forward_only(stages=3, microbatches=5).simulate(f_cost=2, b_cost=100).total == 14


@pytest.mark.parametrize("costs", [{"f_cost": 0}, {"b_cost": -1}, {"head_cost": -1}])
def test_costs_that_are_no_times_are_refused(costs):
    with pytest.raises(UserError, match="must be positive"):
        schedule("1f1b", 2, 2).simulate(**costs)
