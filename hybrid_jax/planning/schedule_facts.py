"""What the planner reads off the table of a strategy's schedule."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.pipeline.schedules import schedule
from hybrid_jax.pipeline.task_table import Schedule


class ScheduleFacts(NamedTuple):
    """Counts of one schedule's table.

    Attributes:
      f_ticks, b_ticks: in which some stage has an F, a B; the others' slots are idle.
      heads: ticks with a loss head.
      slots: of the ring that residuals wait in; 0 where every F shares its tick with its B.
      stores_outputs: whether outputs wait in slots too, for their head.
      idle_share: idle slots by working ones.
      x_sends, dx_sends: permutes to the next stage, to the previous one.
    """

    f_ticks: int
    b_ticks: int
    heads: int
    slots: int
    stores_outputs: bool
    idle_share: float
    x_sends: int
    dx_sends: int


def schedule_facts(strategy: Strategy) -> ScheduleFacts:
    """Returns the counts of the strategy's schedule.

    >>> facts = schedule_facts(Strategy(stage=4, microbatches=64))
    >>> facts.f_ticks, facts.slots
    (67, 7)
    >>> schedule_facts(Strategy(stage=4, microbatches=6)).idle_share
    0.5
    """
    # The table may be large, and a search asks for it often: its counts alone are kept.
    return _facts(strategy.schedule, strategy.stage, strategy.microbatches, strategy.chunks)


@cache
def _facts(name: str, stages: int, microbatches: int, chunks: int) -> ScheduleFacts:
    table = schedule(name, stages, microbatches, chunks)
    forward, backward = table.f_microbatch >= 0, table.b_microbatch >= 0
    f_ticks, b_ticks = (int(runs.any(axis=1).sum()) for runs in (forward, backward))
    working = int(forward.sum() + backward.sum())
    x_unread, dx_unread = _unread(table)
    return ScheduleFacts(
        f_ticks=f_ticks,
        b_ticks=b_ticks,
        heads=int(np.sum(table.head >= 0)),
        slots=0 if table.fused else table.num_slots,
        stores_outputs=table.stores_outputs,
        idle_share=((f_ticks + b_ticks) * stages - working) / working,
        x_sends=f_ticks - x_unread,
        dx_sends=b_ticks - dx_unread,
    )


def _unread(table: Schedule) -> tuple[int, int]:
    """Sends of x and of dx that the compiler drops.

    A segment of one tick is no loop, so what it sends to nobody is not sent: that is so of the last
    F's x and of the last B's dx.
    """
    single = [segment for segment in table.segments() if segment.stop - segment.start == 1]
    last_f = int(np.flatnonzero((table.f_microbatch >= 0).any(axis=1))[-1])
    last_b = int(np.flatnonzero((table.b_microbatch >= 0).any(axis=1))[-1])
    starts = [segment.start for segment in single]
    return starts.count(last_f), starts.count(last_b)
