"""How long a schedule takes, from the costs of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hybrid_jax.errors import UserError

if TYPE_CHECKING:
    from hybrid_jax.pipeline.schedules import Schedule


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
        """Idle time as a fraction of the work, (S-1)/(vM), as in Narayanan et al. 2021, §2.2."""
        work = float(self.busy.max())
        return self.total / work - 1.0


def simulate(
    schedule: Schedule, f_cost: float = 1.0, b_cost: float = 2.0, head_cost: float = 0.0
) -> Simulation:
    """Returns the time of `schedule` in lockstep: a tick lasts as long as its slowest stage.

    Args:
      f_cost, b_cost: time of one microbatch's forward, backward, through all layers of one stage;
        a chunk takes `1 / chunks` of it, so that schedules can be compared.
      head_cost: time of one microbatch's loss head and its gradient on one device. The stages
        share it equally (the head is split along the tokens).

    Raises:
      UserError: `f_cost` is not positive, or another cost is negative.
    """
    if f_cost <= 0 or b_cost < 0 or head_cost < 0:
        raise UserError(
            f"costs f_cost={f_cost}, b_cost={b_cost}, head_cost={head_cost} must be positive "
            f"(b_cost and head_cost may be 0): give times in any unit"
        )
    forward = (schedule.f_microbatch >= 0) * (f_cost / schedule.chunks)
    backward = (schedule.b_microbatch >= 0) * (b_cost / schedule.chunks)
    head = (schedule.head >= 0) * (head_cost / schedule.stages)
    work = forward + backward + head[:, None]
    tick_ends = np.cumsum(work.max(axis=1))
    return Simulation(float(tick_ends[-1]), work.sum(axis=0), tick_ends)
