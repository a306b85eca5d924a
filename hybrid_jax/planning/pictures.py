"""Pictures of a plan: where the time goes and what fills the memory."""

from __future__ import annotations

import textwrap
from dataclasses import fields
from typing import TYPE_CHECKING

from hybrid_jax.config.strategy import MESH_AXES, Strategy
from hybrid_jax.figures import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    SMALL,
    TEAL,
    WIDTH,
    check_picture_path,
    end_bar,
    lighter,
    name_parts,
    new_axes,
    new_figure,
    set_title,
    stacked_bars,
    write_beside,
)
from hybrid_jax.planning.memory import Memory
from hybrid_jax.planning.search import Plan
from hybrid_jax.planning.timeline import plot_timeline, timeline_height
from hybrid_jax.tables import byte_unit, format_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hybrid_jax.planning.report import PlanReport

NUM_MISSES = 3
"""Plans that do not fit, shown below those that do: the nearest."""

# Computing is blue, waiting grey, sending brown to orange: the slower the link, the darker.
TIME_COLORS = {
    "layers": BLUE,
    "head": TEAL,
    "sums": lighter(BLUE, 0.45),
    "update": "#1b3c63",
    "bubble": "#c3cad3",
    "over replica": "#6e2f07",
    "over stage": "#a84a0c",
    "over data": ORANGE,
    "over context": "#e58f52",
    "over expert": "#edb083",
    "over model": "#f5cfb3",
}
# State is blue, what is made of it for the step green, activations orange.
MEMORY_COLORS = {
    "parameters": "#1b3c63",
    "optimizer": BLUE,
    "compute copy": TEAL,
    "gradients": "#35877a",
    "residuals": ORANGE,
    "boundary": "#8a3f0c",
    "slot": lighter(ORANGE, 0.5),
    "batch": "#c3cad3",
}


def plot_comparison(report: PlanReport, ax: Axes | None = None) -> Axes:
    """Draws a bar for each plan shown: its step time, by what it goes to."""
    plans = _shown(report)
    ax = ax or new_axes("PlanReport.plot", WIDTH, _height(len(plans)))
    stacked_bars(ax, [_seconds(plan) for plan in plans], TIME_COLORS)
    _name_plans(ax, plans)
    longest = max((plan.time.total for plan in plans if plan.time), default=1.0)
    ax.set_xlim(0, 1.14 * longest)
    unit, size = byte_unit(max(plan.memory.total for plan in plans))
    if report.fits:
        for points, text, align in (
            (22, "MFU", "right"),
            (58, unit, "right"),
            (70, "why not", "left"),
        ):
            write_beside(ax, -0.6, text, points, align, color=MUTED)
    for row, plan in enumerate(plans):
        if plan.time is None:
            reason = textwrap.shorten(plan.reason, 110)
            ax.text(0, row, f" {reason}", va="center", fontsize=SMALL, color=MUTED)
            continue
        end_bar(ax, row, plan.time.total, format_duration(plan.time.total))
        write_beside(ax, row, f"{plan.time.mfu:.0%}", 22)
        write_beside(ax, row, f"{plan.memory.total / size:.3g}", 58)
        write_beside(ax, row, textwrap.fill(plan.reason, 36), 70, "left", color=MUTED)
    if not report.fits:
        ax.set_xticks([])
    set_title(
        ax, "Predicted step time, seconds" if report.fits else f"Nothing fits: {report.remedy}"
    )
    name_parts(ax)
    return ax


def plot_memory(report: PlanReport, ax: Axes | None = None) -> Axes:
    """Draws a bar for each plan shown: the memory of one device, by part, beside what there is.

    A diamond is what the compiler says, where it was asked.
    """
    plans = _shown(report)
    ax = ax or new_axes("PlanReport.plot_memory", WIDTH, _height(len(plans)))
    compiled = {found.strategy: found.compiled.total for found in report.verified}
    compiled = {strategy: total for strategy, total in compiled.items() if total}
    largest = max(max(plan.memory.total, compiled.get(plan.strategy, 0)) for plan in plans)
    unit, size = byte_unit(largest)
    rows = [{name: value / size for name, value in _parts(plan.memory)} for plan in plans]
    stacked_bars(ax, rows, MEMORY_COLORS)
    _name_plans(ax, plans)
    for row, plan in enumerate(plans):
        predicted, found = plan.memory.total / size, compiled.get(plan.strategy, 0) / size
        text = f"  {predicted:.3g}, compiled {found:.3g}" if found else f"{predicted:.3g}"
        end_bar(ax, row, max(predicted, found), text, color=INK if plan.time else MUTED)
        if found:
            ax.plot([found], [row], "D", color=INK, markeredgecolor="white", markersize=6)
    right = _draw_limits(ax, report, largest / size, unit, size)
    ax.set_xlim(0, max((1.25 if compiled else 1.12) * largest / size, 1.02 * right))
    ax.set_ylim(len(plans) - 0.5, -0.95)
    nothing = "" if report.fits else f": nothing fits; {report.remedy}"
    set_title(ax, f"Memory of one device, {unit}{nothing}")
    name_parts(ax)
    return ax


def _draw_limits(ax: Axes, report: PlanReport, largest: float, unit: str, size: int) -> float:
    """Draws what a step may use, dashed the device's memory where that is more; returns the end."""
    problem = report.problem
    limit, chip = problem.memory_limit_bytes / size, problem.cluster.chip.hbm_bytes / size
    limits = [("limit", limit, "-")] if limit < chip else []
    limits.append(("device", chip, "--" if limit < chip else "-"))
    right = largest
    for name, value, style in limits:
        text = f"{name} {value:,.4g} {unit}"
        if value > 1.6 * largest:  # so far beyond the bars that it would make them short
            write_beside(ax, -0.68, f"{text} →", 30, "right", color=INK)
            continue
        right = max(right, value)
        ax.axvline(value, color=INK, linestyle=style, linewidth=1)
        ax.text(value, -0.68, f"{text} ", ha="right", va="center", fontsize=SMALL, color=INK)
    return right


def save(report: PlanReport, path: str) -> None:
    """Draws everything into one file; without a timeline where nothing fits."""
    check_picture_path("save", path)
    rows = len(_shown(report))
    heights = [_height(rows)]
    if report.fits:
        heights = [_height(rows), _height(rows), timeline_height(report.plans[0])]
    figure = new_figure("save", WIDTH, sum(heights))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = [part.subplots() for part in parts]
    if report.fits:
        plot_comparison(report, axes[0])
        plot_timeline(report, 1, axes[2])
    plot_memory(report, axes[len(axes) // 2])
    figure.savefig(path, dpi=150)


def _height(rows: int) -> float:
    return 1.2 + 0.42 * rows


def _shown(report: PlanReport) -> list[Plan]:
    """The best plans, as many as the tables show, and the nearest misses."""
    fitting = [plan for plan in report.plans if plan.time]
    misses = [plan for plan in report.plans if plan.time is None]
    return fitting[: report.top] + misses[: NUM_MISSES if fitting else report.top]


def _seconds(plan: Plan) -> dict[str, float]:
    time = plan.time
    if time is None:
        return {}
    return {
        "layers": time.layers,
        "head": time.head,
        "sums": time.accumulate,
        "update": time.update,
        "bubble": time.bubble,
        **{f"over {axis}": seconds for axis, seconds in time.communication.items()},
    }


def _parts(needs: Memory) -> list[tuple[str, float]]:
    return [(field.name.replace("_", " "), getattr(needs, field.name)) for field in fields(needs)]


def _name_plans(ax: Axes, plans: list[Plan]) -> None:
    """On the left rank, mesh axes, and what else there is in smaller type."""
    ax.set_yticks([])
    for row, plan in enumerate(plans):
        axes, rest = _words(plan.strategy)
        color = INK if plan.time else MUTED
        if plan.time:
            write_beside(ax, row, f"{row + 1}", -184, "right", at=0.0, color=color)
        lines = len(rest) + 1
        write_beside(ax, row, axes + "\n" * (lines - 1), -178, "left", at=0.0, color=color)
        text = "\n" + "\n".join(rest)
        write_beside(ax, row, text, -178, "left", at=0.0, size=SMALL - 1, color=MUTED)


def _words(strategy: Strategy) -> tuple[str, list[str]]:
    """Sizes of the mesh axes, and lines of what else there is."""
    words = strategy.describe().replace("schedule=", "").split(" ")
    axes = [word for word in words if word.partition("=")[0] in MESH_AXES]
    rest = [word for word in words if word not in axes]
    return " ".join(axes), textwrap.wrap(" ".join(rest), 40)
