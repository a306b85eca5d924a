"""The proof that a schedule's tables are right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hybrid_jax.pipeline.schedules import Schedule


def validate(schedule: Schedule) -> None:
    """Proves a schedule right for the executor, whoever built its tables.

    * Every microbatch runs F and B (`forward_only`: F) exactly once on every virtual stage
      `chunk * stages + stage`, so every layer is placed exactly once, and has one loss head.
    * An F uses what the virtual stage before it sent one tick earlier, a B what the one after it
      sent one tick earlier: a message waits one tick, not longer. The last virtual stage's B shares
      its tick with the head, at or after its F, and no B is before its own F.
    * No ring slot is written while it holds residuals still to be read, and every B reads the slot
      that its F wrote.

    Raises:
      ValueError: the first violation found, with its tick and stage.
    """
    _check_ranges(schedule)
    f_tick = _ticks_of_runs(schedule, "F", schedule.f_microbatch, schedule.f_chunk)
    head_tick = _ticks_of_heads(schedule)
    _check_arrivals(schedule, "F", f_tick, step=1)
    if schedule.name == "forward_only":
        _check_no_backward(schedule)
        _check_heads(schedule, "F", f_tick, head_tick)
        return
    b_tick = _ticks_of_runs(schedule, "B", schedule.b_microbatch, schedule.b_chunk)
    _check_arrivals(schedule, "B", b_tick, step=-1)
    _check_heads(schedule, "B", b_tick, head_tick)
    for microbatch, virtual in np.argwhere(b_tick < f_tick):
        chunk, stage = divmod(int(virtual), schedule.stages)
        raise ValueError(
            f"tick {b_tick[microbatch, virtual]}, stage {stage}: B of microbatch {microbatch}, "
            f"chunk {chunk} runs before its F, which is in tick {f_tick[microbatch, virtual]}"
        )
    _check_slots(schedule)


def _check_ranges(schedule: Schedule) -> None:
    shape = (schedule.num_ticks, schedule.stages)
    tables = {
        "f_microbatch": (shape, -1, schedule.microbatches),
        "f_chunk": (shape, 0, schedule.chunks),
        "f_slot": (shape, 0, schedule.num_slots),
        "b_microbatch": (shape, -1, schedule.microbatches),
        "b_chunk": (shape, 0, schedule.chunks),
        "b_slot": (shape, 0, schedule.num_slots),
        "head": (shape[:1], -1, schedule.microbatches),
    }
    for name, (expected, low, high) in tables.items():
        table = getattr(schedule, name)
        if table.shape != expected or table.dtype != np.int32:
            raise ValueError(f"{name} is {table.dtype}{table.shape}, expected int32{expected}")
        for index in np.argwhere((table < low) | (table >= high)):
            where = f"tick {index[0]}" + (f", stage {index[1]}" if table.ndim == 2 else "")
            raise ValueError(f"{where}: {name} is {table[tuple(index)]}, outside [{low}, {high})")
    for kind in ("f", "b"):
        idle = getattr(schedule, f"{kind}_microbatch") < 0
        for tick, stage in np.argwhere(idle & (getattr(schedule, f"{kind}_chunk") != 0)):
            raise ValueError(f"tick {tick}, stage {stage}: idle, but {kind}_chunk is not 0")


def _ticks_of_runs(
    schedule: Schedule, kind: str, microbatches: np.ndarray, chunks: np.ndarray
) -> np.ndarray:
    """Returns `[microbatches, chunks * stages]`, the one tick of every run on a virtual stage."""
    run_tick = np.full((schedule.microbatches, schedule.chunks * schedule.stages), -1)
    for tick, stage in np.argwhere(microbatches >= 0):
        microbatch, chunk = microbatches[tick, stage], chunks[tick, stage]
        virtual = chunk * schedule.stages + stage
        if run_tick[microbatch, virtual] >= 0:
            raise ValueError(
                f"tick {tick}, stage {stage}: {kind} of microbatch {microbatch}, chunk {chunk} "
                f"runs again, after tick {run_tick[microbatch, virtual]}"
            )
        run_tick[microbatch, virtual] = tick
    for microbatch, virtual in np.argwhere(run_tick < 0):
        chunk, stage = divmod(int(virtual), schedule.stages)
        raise ValueError(
            f"stage {stage}: {kind} of microbatch {microbatch}, chunk {chunk} runs in no tick"
        )
    return run_tick


def _ticks_of_heads(schedule: Schedule) -> np.ndarray:
    """Returns `[microbatches]`, the one tick of every loss head."""
    head_tick = np.full(schedule.microbatches, -1)
    for tick in np.flatnonzero(schedule.head >= 0):
        microbatch = schedule.head[tick]
        if head_tick[microbatch] >= 0:
            raise ValueError(
                f"tick {tick}: head of microbatch {microbatch} runs again, after tick "
                f"{head_tick[microbatch]}"
            )
        head_tick[microbatch] = tick
    for microbatch in np.flatnonzero(head_tick < 0):
        raise ValueError(f"head of microbatch {microbatch} runs in no tick")
    return head_tick


def _check_arrivals(schedule: Schedule, kind: str, run_tick: np.ndarray, step: int) -> None:
    """Every run is one tick after its sender's; `step` is +1 down the pipe (F) and -1 up it (B)."""
    lag = step * np.diff(run_tick, axis=1)
    for microbatch, boundary in np.argwhere(lag != 1):
        receiver, sender = (boundary + 1, boundary) if step == 1 else (boundary, boundary + 1)
        chunk, stage = divmod(int(receiver), schedule.stages)
        raise ValueError(
            f"tick {run_tick[microbatch, receiver]}, stage {stage}: {kind} of microbatch "
            f"{microbatch}, chunk {chunk} must be one tick after that of stage "
            f"{sender % schedule.stages}, chunk {sender // schedule.stages}, which is in tick "
            f"{run_tick[microbatch, sender]}"
        )


def _check_heads(
    schedule: Schedule, kind: str, run_tick: np.ndarray, head_tick: np.ndarray
) -> None:
    for microbatch in np.flatnonzero(head_tick != run_tick[:, -1]):
        raise ValueError(
            f"tick {head_tick[microbatch]}, stage {schedule.stages - 1}: head of microbatch "
            f"{microbatch} must share the tick of the last virtual stage's {kind}, "
            f"{run_tick[microbatch, -1]}"
        )


def _check_no_backward(schedule: Schedule) -> None:
    for tick, stage in np.argwhere(schedule.b_microbatch >= 0):
        raise ValueError(f"tick {tick}, stage {stage}: a forward_only schedule has a B")


def _check_slots(schedule: Schedule) -> None:
    """Runs the table on a ring that knows whose residuals each slot holds."""
    for stage in range(schedule.stages):
        ring: dict[int, tuple[int, int]] = {}
        for tick in range(schedule.num_ticks):
            where = f"tick {tick}, stage {stage}"
            if (schedule.f_microbatch[tick] >= 0).any():
                slot = int(schedule.f_slot[tick, stage])
                if slot in ring:
                    raise ValueError(
                        f"{where}: slot {slot} is overwritten while it holds microbatch, chunk "
                        f"{ring[slot]}"
                    )
                if schedule.f_microbatch[tick, stage] >= 0:
                    ring[slot] = (
                        int(schedule.f_microbatch[tick, stage]),
                        int(schedule.f_chunk[tick, stage]),
                    )
            if schedule.b_microbatch[tick, stage] >= 0:
                slot = int(schedule.b_slot[tick, stage])
                owner = (
                    int(schedule.b_microbatch[tick, stage]),
                    int(schedule.b_chunk[tick, stage]),
                )
                if ring.pop(slot, None) != owner:
                    raise ValueError(
                        f"{where}: B of microbatch, chunk {owner} reads slot {slot}, which does "
                        f"not hold its residuals"
                    )
