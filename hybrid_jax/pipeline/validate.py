"""The proof that a schedule's tables are right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.placement import check_placement, virtual_stages
from hybrid_jax.pipeline.tasks import KINDS, Kind

if TYPE_CHECKING:
    from hybrid_jax.pipeline.task_table import Schedule


def validate(schedule: Schedule) -> None:
    """Proves a schedule right, whoever built its tables.

    * Every microbatch runs F and B (`forward_only`: F) exactly once on every virtual stage, so
      every layer is placed exactly once, and has one loss head. Where one has a W, all have.
    * An F uses what the virtual stage before it sent in an earlier tick, a B what the one after it
      sent in an earlier tick. The last virtual stage's B shares its tick with the head. No B is
      before its F, no W before its B; within a tick and stage the order is F, B, W.
    * No ring slot is written while it holds residuals still to be read, and every B and W reads
      the slot that its F wrote.

    What the executor asks for besides is in `hybrid_jax.pipeline.runnable`.

    Raises:
      UserError: the first violation found, with its tick and stage.
    """
    check_placement(schedule.placement, schedule.stages, schedule.chunks)
    _check_ranges(schedule)
    f_tick = ticks_of_runs(schedule, "F")
    _check_arrivals(schedule, "F", f_tick, step=1)
    if schedule.name == "forward_only":
        _check_no_backward(schedule)
        _check_heads(schedule, "F", f_tick)
        return
    b_tick = ticks_of_runs(schedule, "B")
    _check_arrivals(schedule, "B", b_tick, step=-1)
    _check_heads(schedule, "B", b_tick)
    _check_order(schedule, "F", f_tick, "B", b_tick)
    if schedule.splits_backward:
        _check_order(schedule, "B", b_tick, "W", ticks_of_runs(schedule, "W"))
    _check_slots(schedule)


def ticks_of_runs(schedule: Schedule, kind: Kind) -> np.ndarray:
    """Returns `[microbatches, virtual stages]`, the one tick of every task of this kind.

    Raises:
      UserError: a task is missing, or there twice.
    """
    microbatches, chunks = schedule.column(kind)
    owned = virtual_stages(schedule.placement, schedule.stages)
    run_tick = np.full((schedule.microbatches, owned.size), -1)
    for tick, stage in np.argwhere(microbatches >= 0):
        microbatch, chunk = microbatches[tick, stage], chunks[tick, stage]
        virtual = owned[stage, chunk]
        if run_tick[microbatch, virtual] >= 0:
            raise UserError(
                f"tick {tick}, stage {stage}: {kind} of microbatch {microbatch}, chunk {chunk} "
                f"runs again, after tick {run_tick[microbatch, virtual]}"
            )
        run_tick[microbatch, virtual] = tick
    for microbatch, virtual in np.argwhere(run_tick < 0):
        stage, chunk = place_of(schedule, virtual)
        raise UserError(
            f"stage {stage}: {kind} of microbatch {microbatch}, chunk {chunk} runs in no tick"
        )
    return run_tick


def place_of(schedule: Schedule, virtual: int) -> tuple[int, int]:
    """Returns the (stage, chunk) of a virtual stage."""
    stage = schedule.placement[virtual]
    return stage, schedule.placement[:virtual].count(stage)


def _check_ranges(schedule: Schedule) -> None:
    shape = (schedule.num_ticks, schedule.stages)
    tables = {
        "f_microbatch": (shape, -1, schedule.microbatches),
        "f_chunk": (shape, 0, schedule.chunks),
        "f_slot": (shape, 0, schedule.num_slots),
        "b_microbatch": (shape, -1, schedule.microbatches),
        "b_chunk": (shape, 0, schedule.chunks),
        "b_slot": (shape, 0, schedule.num_slots),
        "w_microbatch": (shape, -1, schedule.microbatches),
        "w_chunk": (shape, 0, schedule.chunks),
        "w_slot": (shape, 0, schedule.num_slots),
        "head": (shape[:1], -1, schedule.microbatches),
    }
    for name, (expected, low, high) in tables.items():
        table = getattr(schedule, name)
        if table.shape != expected or table.dtype != np.int32:
            raise UserError(f"{name} is {table.dtype}{table.shape}, expected int32{expected}")
        for index in np.argwhere((table < low) | (table >= high)):
            where = f"tick {index[0]}" + (f", stage {index[1]}" if table.ndim == 2 else "")
            raise UserError(f"{where}: {name} is {table[tuple(index)]}, outside [{low}, {high})")
    for kind in KINDS:
        microbatches, chunks = schedule.column(kind)
        for tick, stage in np.argwhere((microbatches < 0) & (chunks != 0)):
            raise UserError(f"tick {tick}, stage {stage}: idle, but {kind.lower()}_chunk is not 0")


def _ticks_of_heads(schedule: Schedule) -> np.ndarray:
    """Returns `[microbatches]`, the one tick of every loss head."""
    head_tick = np.full(schedule.microbatches, -1)
    for tick in np.flatnonzero(schedule.head >= 0):
        microbatch = schedule.head[tick]
        if head_tick[microbatch] >= 0:
            raise UserError(
                f"tick {tick}: head of microbatch {microbatch} runs again, after tick "
                f"{head_tick[microbatch]}"
            )
        head_tick[microbatch] = tick
    for microbatch in np.flatnonzero(head_tick < 0):
        raise UserError(f"head of microbatch {microbatch} runs in no tick")
    return head_tick


def _check_arrivals(schedule: Schedule, kind: Kind, run_tick: np.ndarray, step: int) -> None:
    """Every run is in a later tick than its sender's; `step` is +1 towards the head, else -1."""
    lag = step * np.diff(run_tick, axis=1)
    for microbatch, boundary in np.argwhere(lag < 1):
        receiver, sender = (boundary + 1, boundary) if step == 1 else (boundary, boundary + 1)
        stage, chunk = place_of(schedule, receiver)
        from_stage, from_chunk = place_of(schedule, sender)
        raise UserError(
            f"tick {run_tick[microbatch, receiver]}, stage {stage}: {kind} of microbatch "
            f"{microbatch}, chunk {chunk} must be one tick after that of stage {from_stage}, chunk "
            f"{from_chunk}, or later; that is in tick {run_tick[microbatch, sender]}"
        )


def _check_heads(schedule: Schedule, kind: Kind, run_tick: np.ndarray) -> None:
    head_tick = _ticks_of_heads(schedule)
    for microbatch in np.flatnonzero(head_tick != run_tick[:, -1]):
        raise UserError(
            f"tick {head_tick[microbatch]}, stage {schedule.placement[-1]}: head of microbatch "
            f"{microbatch} must share the tick of the last virtual stage's {kind}, "
            f"{run_tick[microbatch, -1]}"
        )


def _check_no_backward(schedule: Schedule) -> None:
    for kind in ("B", "W"):
        for tick, stage in np.argwhere(schedule.column(kind).microbatch >= 0):
            raise UserError(f"tick {tick}, stage {stage}: a forward_only schedule has a {kind}")


def _check_order(
    schedule: Schedule, first: Kind, first_tick: np.ndarray, then: Kind, then_tick: np.ndarray
) -> None:
    for microbatch, virtual in np.argwhere(then_tick < first_tick):
        stage, chunk = place_of(schedule, virtual)
        raise UserError(
            f"tick {then_tick[microbatch, virtual]}, stage {stage}: {then} of microbatch "
            f"{microbatch}, chunk {chunk} runs before its {first}, which is in tick "
            f"{first_tick[microbatch, virtual]}"
        )


def _check_slots(schedule: Schedule) -> None:
    """Runs the table on a ring that knows whose residuals each slot holds."""
    readers: list[tuple[Kind, np.ndarray]] = [("B", schedule.b_slot), ("W", schedule.w_slot)]
    frees = "W" if schedule.splits_backward else "B"
    writes = np.any(schedule.f_microbatch >= 0, axis=1)
    for stage in range(schedule.stages):
        ring: dict[int, tuple[int, int]] = {}
        for tick in range(schedule.num_ticks):
            where = f"tick {tick}, stage {stage}"
            if writes[tick]:
                slot = int(schedule.f_slot[tick, stage])
                if slot in ring:
                    raise UserError(
                        f"{where}: slot {slot} is overwritten while it holds microbatch, chunk "
                        f"{ring[slot]}"
                    )
                if schedule.f_microbatch[tick, stage] >= 0:
                    ring[slot] = _owner(schedule, "F", tick, stage)
            for kind, slots in readers:
                if schedule.column(kind).microbatch[tick, stage] < 0:
                    continue
                slot, owner = int(slots[tick, stage]), _owner(schedule, kind, tick, stage)
                if ring.get(slot) != owner:
                    raise UserError(
                        f"{where}: {kind} of microbatch, chunk {owner} reads slot {slot}, which "
                        "does not hold its residuals"
                    )
                if kind == frees:
                    del ring[slot]


def _owner(schedule: Schedule, kind: Kind, tick: int, stage: int) -> tuple[int, int]:
    microbatches, chunks = schedule.column(kind)
    return int(microbatches[tick, stage]), int(chunks[tick, stage])
