"""Ring slots: where the residuals of a forward wait for their backward."""

from __future__ import annotations

import numpy as np

from hybrid_jax.pipeline.tasks import Column


def assign_slots(
    forward: Column, readers: tuple[Column, ...], microbatches: int, chunks: int
) -> tuple[np.ndarray, tuple[np.ndarray, ...], int]:
    """Gives every forward a ring slot that stays its own until its last reader has read it.

    This is register allocation by interval colouring: the residuals of a (microbatch, chunk) live
    from the tick of its forward to that of its last B or W, both included, because within a tick
    the forward writes before the others read. A stage needs as many slots as intervals overlap at
    its worst tick, n. Its first n intervals take a slot each; from then on each takes that of
    the interval which has ended longest ago and not been followed yet.

    The executor does not branch: in a tick where any stage runs a forward every stage writes, and
    what an idle stage writes is garbage. It gets a free slot too, for that tick only.

    Args:
      forward: the F tasks.
      readers: the B tasks, and the W tasks where there are any.

    Returns:
      int32 `[ticks, stages]`, 0 where nothing is written or read: the slots that F writes, and
      those that each of `readers` reads; and the number of slots of the stage that needs most.
    """
    num_ticks, stages = forward.microbatch.shape
    read = [_runs(column) for column in readers]
    last_read = np.full((stages, microbatches, chunks), -1)
    for tick, owner in read:
        np.maximum.at(last_read, owner, tick)

    writes = np.flatnonzero((forward.microbatch >= 0).any(axis=1))
    real = forward.microbatch[writes] >= 0  # [writes, stages]
    f_tick, f_owner = _runs(forward)
    ends = np.broadcast_to(writes[:, None], real.shape).copy()
    ends[real] = last_read[f_owner]
    ends[ends < writes[:, None]] = num_ticks  # of a wrong table: never read
    slot, num_slots = _color(writes, ends.T, num_ticks)

    f_slot = np.zeros((num_ticks, stages), np.int32)
    f_slot[writes] = slot.T
    slot_of = np.zeros((stages, microbatches, chunks), np.int32)
    slot_of[f_owner] = f_slot[f_tick, f_owner[0]]
    read_slots = []
    for tick, owner in read:
        slots = np.zeros_like(f_slot)
        slots[tick, owner[0]] = slot_of[owner]
        read_slots.append(slots)
    return f_slot, tuple(read_slots), num_slots


def _runs(column: Column) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Returns the tick of each task, and whose residuals it has: (stage, microbatch, chunk)."""
    tick, stage = np.nonzero(column.microbatch >= 0)
    return tick, (stage, column.microbatch[tick, stage], column.chunk[tick, stage])


def _color(starts: np.ndarray, ends: np.ndarray, num_ticks: int) -> tuple[np.ndarray, int]:
    """Colours intervals `starts[i]` to `ends[stage, i]`; returns `[stages, i]` and the most used.

    The i-th interval of a stage that needs n slots follows the (i-n)-th to end: before the i-th
    starts, at least i-n+1 have ended, or more than n would overlap.
    """
    stages, count = ends.shape
    ends = np.ascontiguousarray(ends)
    ended = np.zeros((stages, num_ticks + 2), np.int64)  # [:, t]: before tick t
    np.add.at(ended, (np.arange(stages)[:, None], ends + 1), 1)
    ended = np.cumsum(ended, axis=1)
    needed = (np.arange(1, count + 1) - ended[:, starts]).max(axis=1, initial=1)
    by_end = np.argsort(ends, axis=1, kind="stable")
    index = np.arange(count)
    earlier = np.take_along_axis(by_end, np.maximum(index - needed[:, None], 0), axis=1)
    followed = np.where(index < needed[:, None], index, earlier)
    while True:  # to the first of each chain of followers, whose index is the slot
        further = np.take_along_axis(followed, followed, axis=1)
        if np.array_equal(further, followed):
            return followed.astype(np.int32), int(needed.max())
        followed = further
