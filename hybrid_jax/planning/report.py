"""The result of planning: tables, pictures, JSON, and the strategy to use."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.planning import tables
from hybrid_jax.planning.reasons import padded_layers, padding_note
from hybrid_jax.planning.search import Plan, Problem
from hybrid_jax.planning.verified import Verified
from hybrid_jax.planning.verify import TIMEOUT_SECONDS, rerank, verify
from hybrid_jax.tables import Tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class PlanReport(Tables):
    """Ranked strategies for one model, cluster and batch; `print` it, or show it in a notebook.

    Attributes:
      problem: what was asked for.
      plans: one for each layout, the fastest first, then those that do not fit.
      top: how many of them the tables show.
      remedy: where nothing fits, what would make it fit.
      verified: what the compiler says of the best plans, where it was asked.
    """

    problem: Problem
    plans: tuple[Plan, ...]
    top: int = 8
    remedy: str = ""
    verified: tuple[Verified, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether any plan does; after `verify`, whether the compiler says so of one."""
        confirmed = any(found.fits for found in self.verified) or not self.verified
        return self.plans[0].time is not None and confirmed

    @property
    def best(self) -> Strategy:
        """The fastest strategy that fits; after `verify`, that the compiler says fits.

        Raises:
          UserError: none does: the nearest miss, and what would make it fit.
        """
        if not self.fits:
            raise UserError(self.miss)
        return self.plans[0].strategy

    def verify(
        self, top: int = 3, *, jobs: int = 1, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> PlanReport:
        """Returns the report with the best plans compiled, and ranked by what came of it.

        Compiles with the real compiler for devices that need not be here, each plan in a process
        of its own. One that does not fit, or that the compiler fails on, is demoted; where none
        of the first is confirmed, the next ones are tried, up to a limit.

        Args:
          top: plans to compile.
          jobs: compilations at a time; each may use several GB of this machine's memory.
          timeout_seconds: of each.

        Raises:
          UserError: the compiler is not installed; the message says how to install it.
        """
        found = verify(self.problem, self.plans, top, jobs=jobs, timeout_seconds=timeout_seconds)
        plans = rerank(self.problem, self.plans, found)
        remedy = self.remedy or "verify more plans, or use more devices or larger ones"
        return replace(self, plans=plans, remedy=remedy, verified=found)

    @property
    def miss(self) -> str:
        """Where nothing fits, by how much and what would help, on one line."""
        devices = self.problem.cluster.describe()
        if self.verified:
            first = self.verified[0]
            return (
                f"the compiler confirms none of the {len(self.verified)} best plans on {devices}: "
                f"the first, {first.strategy.describe()}, {first.verdict}; {self.remedy}."
            )
        nearest_miss = self.plans[0]
        return (
            f"nothing fits on {devices}: the smallest, {nearest_miss.strategy.describe()}, "
            f"{nearest_miss.reason}; {self.remedy}."
        )

    def __rich__(self) -> Group:
        shown = self.plans[: self.top]
        parts = [tables.heading(self.problem), tables.ranking(self.problem, shown)]
        left = len(self.plans) - len(shown)
        if left:
            parts.append(tables.note(f"and {left} layouts more; top={len(self.plans)} shows all"))
        if self.verified:
            parts.append(tables.beside_compiled(self.verified))
        parts.append(tables.memory_parts(self.problem, shown))
        if self.fits:
            parts.append(tables.time_parts([plan for plan in shown if plan.time]))
            if padded_layers(self.problem, self.best):
                parts.append(tables.note(f"the best has {padding_note(self.problem, self.best)}"))
        else:
            parts.append(tables.note(self.miss))
        return Group(*parts)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the step time of the plans by cause, with why the others lost.

        Raises:
          UserError: matplotlib is not installed.
        """
        from hybrid_jax.planning.pictures import plot_comparison

        return plot_comparison(self, ax)

    def plot_memory(self, ax: Axes | None = None) -> Axes:
        """Draws the memory of one device by part, a bar for each plan, beside what there is."""
        from hybrid_jax.planning.pictures import plot_memory

        return plot_memory(self, ax)

    def plot_timeline(self, rank: int = 1, ax: Axes | None = None) -> Axes:
        """Draws what each stage of a plan is predicted to do when, in seconds.

        Args:
          rank: of the plan, as in the tables.

        Raises:
          UserError: no plan of this rank fits.
        """
        from hybrid_jax.planning.pictures import plot_timeline

        return plot_timeline(self, rank, ax)

    def save(self, path: str | Path) -> None:
        """Writes all pictures, the timeline of the best plan too, into one .png, .pdf or .svg."""
        from hybrid_jax.planning.pictures import save

        save(self, str(path))

    def to_json(self) -> str:
        """Returns every plan as JSON text; bytes and seconds per device and step."""
        problem = self.problem
        return json.dumps(
            {
                "devices": problem.cluster.describe(),
                "global_batch": problem.global_batch,
                "seq_len": problem.seq_len,
                "memory_bytes": problem.memory_limit_bytes,
                "plans": [_plan_fields(plan) for plan in self.plans],
                "remedy": self.remedy,
                "verified": [found.to_fields() for found in self.verified],
            },
            indent=2,
        )


def _plan_fields(plan: Plan) -> dict[str, Any]:
    return {
        "strategy": asdict(plan.strategy),
        "fits": plan.time is not None,
        "reason": plan.reason,
        "bubble": plan.bubble,
        "memory": asdict(plan.memory) | {"total": plan.memory.total},
        "time": None if plan.time is None else asdict(plan.time) | {"total": plan.time.total},
    }
