"""The validator refuses every way in which a table can be wrong."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hybrid_jax.pipeline.schedules import Schedule, forward_only, schedule


def changed(table: Schedule, **cells) -> Schedule:
    """Returns `table` with cells replaced: `name={index: value}`."""
    tables = {}
    for name, values in cells.items():
        tables[name] = getattr(table, name).copy()
        for index, value in values.items():
            tables[name][index] = value
    return dataclasses.replace(table, **tables)


GPIPE = schedule("gpipe", stages=2, microbatches=3)
INTERLEAVED = schedule("interleaved", stages=2, microbatches=4, chunks=2)


@settings(deadline=None, max_examples=300)
@given(st.from_type(Schedule), st.data())
def test_any_change_of_what_runs_is_refused(table, data):
    name = data.draw(
        st.sampled_from(["f_microbatch", "f_chunk", "b_microbatch", "b_chunk", "head"])
    )
    cells = getattr(table, name)
    index = tuple(data.draw(st.integers(0, size - 1)) for size in cells.shape)
    low, high = (0, table.chunks) if "chunk" in name else (-1, table.microbatches)
    value = data.draw(st.integers(low, high - 1))
    assume(value != cells[index])
    with pytest.raises(ValueError, match="tick"):
        changed(table, **{name: {index: value}}).validate()


@settings(deadline=None, max_examples=300)
@given(st.from_type(Schedule), st.data())
def test_any_change_of_a_used_slot_is_refused(table, data):
    assume(table.name != "forward_only" and table.num_slots > 1)
    kind = data.draw(st.sampled_from("fb"))
    used = np.argwhere(getattr(table, f"{kind}_microbatch") >= 0)
    tick, stage = used[data.draw(st.integers(0, len(used) - 1))]
    slot = data.draw(st.integers(0, table.num_slots - 1))
    assume(slot != getattr(table, f"{kind}_slot")[tick, stage])
    with pytest.raises(ValueError, match=r"tick .* slot"):
        changed(table, **{f"{kind}_slot": {(tick, stage): slot}}).validate()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (changed(GPIPE, f_microbatch={(3, 0): 1}), "tick 3, stage 0: F of microbatch 1.* again"),
        (changed(GPIPE, b_microbatch={(5, 0): -1}), "stage 0: B of microbatch 0.* in no tick"),
        (changed(INTERLEAVED, f_chunk={(0, 0): 1}), "stage 0: F of microbatch 0, chunk 1 .*again"),
        (
            changed(GPIPE, f_microbatch={(2, 0): -1, (3, 0): 2}),
            "tick 3, stage 1: F of microbatch 2, chunk 0 must be one tick after that of stage 0",
        ),
        (
            changed(GPIPE, b_microbatch={(7, 0): -1, (3, 0): 2}),
            "tick 3, stage 0: B of microbatch 2, chunk 0 must be one tick after that of stage 1",
        ),
        (changed(GPIPE, head={4: -1}), "head of microbatch 0 runs in no tick"),
        (changed(GPIPE, head={7: 0}), "tick 7: head of microbatch 0 runs again"),
        (changed(GPIPE, head={4: 1, 5: 0}), "tick 5, stage 1: head of microbatch 0 must share"),
        (changed(GPIPE, f_microbatch={(0, 0): 3}), "tick 0, stage 0: f_microbatch is 3, outside"),
        (changed(GPIPE, head={0: -2}), "tick 0: head is -2, outside"),
        (changed(INTERLEAVED, b_chunk={(0, 0): 1}), "tick 0, stage 0: idle, but b_chunk is not 0"),
        (dataclasses.replace(GPIPE, num_slots=3), "tick .* outside \\[0, 3\\)"),
        (dataclasses.replace(GPIPE, f_slot=GPIPE.f_slot[:-1]), "f_slot is int32\\(7, 2\\)"),
        (
            dataclasses.replace(GPIPE, f_slot=GPIPE.f_slot.astype(np.int64)),
            "f_slot is int64\\(8, 2\\), expected int32\\(8, 2\\)",
        ),
        (
            changed(forward_only(2, 3), b_microbatch={(3, 0): 1}),
            "tick 3, stage 0: a forward_only schedule has a B",
        ),
    ],
)
def test_the_error_names_the_place(broken, message):
    with pytest.raises(ValueError, match=message):
        broken.validate()


def test_a_backward_before_its_forward_is_refused():
    early = dataclasses.replace(
        GPIPE,
        b_microbatch=np.roll(GPIPE.b_microbatch, -4, axis=0),
        b_slot=np.roll(GPIPE.b_slot, -4, axis=0),
        head=np.roll(GPIPE.head, -4),
    )
    with pytest.raises(ValueError, match=r"tick 0, stage 1: B of microbatch 0, .* before its F"):
        early.validate()


def test_garbage_may_go_to_a_dead_slot_only():
    """In tick 3 stage 1 has the last F and stage 0 is idle, its three slots alive."""
    assert GPIPE.f_slot[3, 0] == 3
    for slot in range(3):
        with pytest.raises(ValueError, match=f"tick 3, stage 0: slot {slot} is overwritten"):
            changed(GPIPE, f_slot={(3, 0): slot}).validate()
