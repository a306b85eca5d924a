"""Whether the executor can run a table, which may be right and yet ask for more than it does."""

from __future__ import annotations

from typing import Any

import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.placement import ring
from hybrid_jax.pipeline.task_table import Schedule
from hybrid_jax.pipeline.tasks import Kind
from hybrid_jax.pipeline.validate import place_of, ticks_of_runs


def check_runs(table: Any, stages: int, microbatches: int, chunks: int) -> None:
    """Raises a UserError unless the executor can train by `table` on a layout of these sizes.

    Besides a valid table it needs F and B tasks alone, the ring as placement, and messages that
    wait one tick, no longer: a stage has room for one activation and one gradient received.

    >>> from hybrid_jax.pipeline.schedules import schedule
    >>> check_runs(schedule("1f1b", stages=2, microbatches=8), stages=2, microbatches=4, chunks=1)
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: schedule '1f1b' has microbatches=8, but the strategy has 4: build \
the table for 4, or set strategy.microbatches=8.

    Args:
      table: what the user passed.
      stages, microbatches, chunks: those of the strategy.

    Raises:
      UserError: with the remedy, and the tick and stage where there is one.
    """
    if not isinstance(table, Schedule):
        raise UserError(
            f"schedule={table!r} must be a Schedule: build it with hj.schedule or "
            "hj.Schedule.from_tasks, or name one in strategy.schedule."
        )
    called = f"schedule {table.name!r}"
    named = "interleaved" if table.chunks > 1 else "1f1b"
    sizes = {
        "stages": (stages, f"strategy.stage={table.stages}"),
        "microbatches": (microbatches, f"strategy.microbatches={table.microbatches}"),
        "chunks": (chunks, f"strategy.chunks={table.chunks} and strategy.schedule={named!r}"),
    }
    for field, (wanted, remedy) in sizes.items():
        has = getattr(table, field)
        if has != wanted:
            raise UserError(
                f"{called} has {field}={has}, but the strategy has {wanted}: build the table for "
                f"{wanted}, or set {remedy}."
            )
    table.validate()
    if "B" not in table.kinds:
        raise UserError(f"{called} has no B tasks, so nothing is trained: add them.")
    if table.splits_backward:
        raise UserError(
            f"{called} has W tasks, but the executor does not split the backward: leave them out, "
            "so that each B computes both gradients."
        )
    if table.placement != ring(stages, chunks):
        raise UserError(
            f"{called} has placement={table.placement}, but a stage sends to its neighbours in a "
            f"ring only: use placement={ring(stages, chunks)}."
        )
    if stages == 1 and chunks > 1:
        raise UserError(
            f"{called} has chunks={chunks} on one stage, which has nobody to interleave with: use "
            "chunks=1."
        )
    _check_waits(table, "F", step=1)
    _check_waits(table, "B", step=-1)


def _check_waits(table: Schedule, kind: Kind, step: int) -> None:
    """Every run is one tick after its sender's; `step` is +1 towards the head, else -1."""
    run_tick = ticks_of_runs(table, kind)
    for microbatch, boundary in np.argwhere(step * np.diff(run_tick, axis=1) > 1):
        receiver, sender = (boundary + 1, boundary) if step == 1 else (boundary, boundary + 1)
        stage, chunk = place_of(table, receiver)
        sent = run_tick[microbatch, sender]
        raise UserError(
            f"tick {run_tick[microbatch, receiver]}, stage {stage}: {kind} of microbatch "
            f"{microbatch}, chunk {chunk} uses what stage {table.placement[sender]} sent in tick "
            f"{sent}, but the executor keeps a message for one tick: run it in tick {sent + 1}, or "
            "send later."
        )
