"""Ring slots: as few as possible, and independent of the number of microbatches under 1F1B."""

import numpy as np
import pytest

from hybrid_jax.pipeline.schedules import schedule


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 6])
def test_1f1b_needs_2s_minus_1_slots_for_any_number_of_microbatches(stages):
    for microbatches in (2 * stages, 16, 64):
        assert schedule("1f1b", stages, microbatches).num_slots == 2 * stages - 1


@pytest.mark.parametrize(("chunks", "num_slots"), [(2, 11), (4, 19)])
def test_interleaved_slots_do_not_grow_with_microbatches(chunks, num_slots):
    for microbatches in (8, 16, 64):
        assert schedule("interleaved", 4, microbatches, chunks).num_slots == num_slots


def test_gpipe_keeps_every_microbatch_and_one_slot_for_garbage():
    assert schedule("gpipe", 4, 8).num_slots == 9
    assert schedule("gpipe", 1, 8).num_slots == 8


@pytest.mark.parametrize(
    "arguments",
    [("gpipe", 3, 4), ("1f1b", 4, 2), ("1f1b", 4, 9), ("interleaved", 3, 6, 2)],
)
def test_the_number_of_slots_is_the_largest_number_of_live_values(arguments):
    """Counted from the tables alone: runs in flight, plus one where an idle stage writes."""
    table = schedule(*arguments)
    begun = np.cumsum(table.f_microbatch >= 0, axis=0)
    ended_before = np.cumsum(table.b_microbatch >= 0, axis=0) - (table.b_microbatch >= 0)
    writes = (table.f_microbatch >= 0).any(axis=1, keepdims=True)
    garbage = writes & (table.f_microbatch < 0)
    assert table.num_slots == (begun - ended_before + garbage).max()
