"""Ring slots: where the residuals of a forward wait for their backward."""

from __future__ import annotations

import heapq

import numpy as np


def assign_slots(
    f_microbatch: np.ndarray, f_chunk: np.ndarray, b_microbatch: np.ndarray, b_chunk: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Gives every forward a ring slot that stays its own until its backward has read it.

    This is register allocation by interval colouring: the residuals of a (microbatch, chunk) live
    from the tick of its forward to the tick of its backward, both included, because within a tick
    the forward writes before the backward reads. Taking the lowest free slot in the order of the
    forwards uses as few slots as intervals overlap at the worst tick, the minimum.

    The executor does not branch: in a tick where any stage runs a forward every stage writes, and
    what an idle stage writes is garbage. It gets a free slot too, for that tick only.

    Args:
      f_microbatch, f_chunk, b_microbatch, b_chunk: `[ticks, stages]`, microbatch -1 where idle.

    Returns:
      `f_slot`, `b_slot`: int32 `[ticks, stages]`, 0 where nothing is written or read; and the
      number of slots of the stage that needs most.
    """
    num_ticks, stages = f_microbatch.shape
    f_slot = np.zeros((num_ticks, stages), np.int32)
    b_slot = np.zeros((num_ticks, stages), np.int32)
    writes = np.any(f_microbatch >= 0, axis=1)
    num_slots = 1
    for stage in range(stages):
        free = [0]
        allocated = 1
        live: dict[tuple[int, int], int] = {}
        for tick in range(num_ticks):
            if writes[tick]:
                if not free:
                    heapq.heappush(free, allocated)
                    allocated += 1
                f_slot[tick, stage] = free[0]
                if f_microbatch[tick, stage] >= 0:
                    owner = (int(f_microbatch[tick, stage]), int(f_chunk[tick, stage]))
                    live[owner] = heapq.heappop(free)
            if b_microbatch[tick, stage] >= 0:
                owner = (int(b_microbatch[tick, stage]), int(b_chunk[tick, stage]))
                b_slot[tick, stage] = live.pop(owner)
                heapq.heappush(free, int(b_slot[tick, stage]))
        num_slots = max(num_slots, allocated)
    return f_slot, b_slot, num_slots
