"""The picture of a plan's step: what every stage does when, as predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_jax.config.checks import check_int
from hybrid_jax.errors import UserError
from hybrid_jax.figures import SMALL, WIDTH, new_axes
from hybrid_jax.pipeline.picture import plot_timeline as plot_schedule
from hybrid_jax.pipeline.schedules import schedule
from hybrid_jax.planning.phases import phases
from hybrid_jax.planning.search import Plan
from hybrid_jax.tables import format_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hybrid_jax.planning.report import PlanReport


def plot_timeline(report: PlanReport, rank: int = 1, ax: Axes | None = None) -> Axes:
    """Draws what each stage of the plan of this rank is predicted to do when, in seconds."""
    plan = _ranked(report, rank)
    strategy, time = plan.strategy, plan.time
    assert time is not None
    ax = ax or new_axes("PlanReport.plot_timeline", WIDTH, timeline_height(plan))
    found = phases(report.problem, plan)
    table = schedule(strategy.schedule, strategy.stage, strategy.microbatches, strategy.chunks)
    ax = plot_schedule(
        table,
        ax,
        f_cost=found.forward,
        b_cost=found.backward,
        head_cost=found.head,
        before={"gather": found.gather},
        after={"reduce": found.reduce, "update": found.update},
    )
    shared = report.problem.cluster.chip.platform == "cpu" and strategy.stage > 1
    note = "; idle stages leave their cores to the others" if shared else ""
    ax.set_xlabel(f"seconds{note}", loc="left", fontsize=SMALL)
    once = {"gather": found.gather, "reduce": found.reduce, "update": found.update}
    ticks = time.total - sum(once.values())
    parts = ", ".join(f"{name} {format_duration(value)}" for name, value in once.items() if value)
    ax.set_title(
        f"Plan {rank}: {strategy.describe()}\n{format_duration(time.total)} a step: "
        f"{format_duration(ticks)} of ticks, {parts}",
        loc="left",
        fontsize=10,
    )
    return ax


def timeline_height(plan: Plan) -> float:
    """Inches that the rows of stages need."""
    return 1.2 + 0.36 * plan.strategy.stage


def _ranked(report: PlanReport, rank: int) -> Plan:
    check_int("rank", rank, at_least=1)
    if not report.fits:
        raise UserError(report.miss)
    fitting = [plan for plan in report.plans if plan.time]
    if rank > len(fitting):
        raise UserError(
            f"rank={rank} must be at most {len(fitting)}, the number of plans that fit."
        )
    return fitting[rank - 1]
