"""How long a schedule takes, from the costs of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.tasks import KINDS

if TYPE_CHECKING:
    from hybrid_jax.pipeline.task_table import Schedule


@dataclass(frozen=True, eq=False)
class Simulation:
    """The time a schedule takes, in the unit of the costs it was given.

    Attributes:
      total: from the start of the first tick to the end of the last.
      busy: `[stages]`, the time each stage works.
      tick_ends: `[ticks]`, when each tick ends; the next one starts then.
    """

    total: float
    busy: np.ndarray
    tick_ends: np.ndarray

    @property
    def bubble_fraction(self) -> float:
        """Idle time as a fraction of the busiest stage's work.

        (S-1)/(vM) for the named schedules (Narayanan et al. 2021, arXiv:2104.04473, §2.2).
        """
        work = float(self.busy.max())
        return self.total / work - 1.0


def simulate(
    schedule: Schedule,
    f_cost: float = 1.0,
    b_cost: float | None = None,
    head_cost: float = 0.0,
    w_cost: float | None = None,
) -> Simulation:
    """Returns the time of `schedule` in lockstep: a tick lasts as long as its slowest stage.

    Args:
      f_cost, b_cost, w_cost: time of one microbatch's F, B, W through all layers of one stage; a
        chunk takes `1 / chunks` of it, so that schedules can be compared. See `Costs.of` for what
        None means.
      head_cost: time of one microbatch's loss head and its gradient on one device. The stages
        share it equally (the head is split along the tokens).

    Raises:
      UserError: `f_cost` is not positive, or another cost is negative.
    """
    costs = Costs.of(schedule, f_cost, b_cost, head_cost, w_cost)
    work = costs.work(schedule).sum(axis=0)
    tick_ends = np.cumsum(work.max(axis=1))
    return Simulation(float(tick_ends[-1]), work.sum(axis=0), tick_ends)


class Costs(NamedTuple):
    """Time of one task of each kind on one virtual stage, and of one stage's share of a head."""

    f: float
    head: float
    b: float
    w: float

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        f_cost: float,
        b_cost: float | None,
        head_cost: float,
        w_cost: float | None,
    ) -> Costs:
        """Returns the costs of `schedule`'s tasks from those of a whole stage and head.

        None is what matmuls make of `f_cost`: a whole backward takes two forwards, and where W
        tasks split it, B and W take one each.
        """
        if b_cost is None:
            b_cost = f_cost if schedule.splits_backward else 2 * f_cost
        w_cost = f_cost if w_cost is None else w_cost
        if f_cost <= 0 or min(b_cost, w_cost, head_cost) < 0:
            raise UserError(
                f"costs f_cost={f_cost}, b_cost={b_cost}, w_cost={w_cost}, head_cost={head_cost} "
                "must be positive (all but f_cost may be 0): give times in any unit"
            )
        v = schedule.chunks
        return cls(f_cost / v, head_cost / schedule.stages, b_cost / v, w_cost / v)

    def work(self, schedule: Schedule) -> np.ndarray:
        """Returns `[4, ticks, stages]`, the time of each tick's F, head, B and W on each stage."""
        f, b, w = (schedule.column(kind).microbatch >= 0 for kind in KINDS)
        head = np.broadcast_to(schedule.head[:, None] >= 0, f.shape)
        return np.stack([f, head, b, w]) * np.reshape(self, (4, 1, 1))
