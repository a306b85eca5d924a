"""The timeline of a schedule as a matplotlib picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from hybrid_jax.figures import IDLE, INK, SMALL, new_axes, text_color
from hybrid_jax.pipeline.simulate import Costs
from hybrid_jax.pipeline.tasks import Kind
from hybrid_jax.pipeline.timeline import COLORS, cell_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hybrid_jax.pipeline.task_table import Schedule

_AROUND = "#c3cad3"


def plot_timeline(
    schedule: Schedule,
    ax: Axes | None = None,
    *,
    f_cost: float = 1.0,
    b_cost: float | None = None,
    head_cost: float = 0.0,
    w_cost: float | None = None,
    before: Mapping[str, float] | None = None,
    after: Mapping[str, float] | None = None,
) -> Axes:
    """Draws the lockstep timeline: a row per stage, the microbatch's number in each cell.

    Forwards are blue, backwards orange, W tasks violet, later chunks lighter, the head between
    forward and backward green; the bubble is pale grey. Widths are the costs, in the unit of
    `f_cost` (one stage's forward of a microbatch), so schedules of the same model drawn on a shared
    x axis compare at a glance.

    Args:
      ax: where to draw; by default a new figure of a fitting size.
      f_cost, b_cost, head_cost, w_cost: as in `Schedule.simulate`.
      before, after: what all stages do before and after the ticks, name → time.

    Returns:
      The axes, on which the caller may go on drawing.

    Raises:
      UserError: matplotlib is not installed.
    """
    simulation = schedule.simulate(f_cost, b_cost, head_cost, w_cost)
    costs = Costs.of(schedule, f_cost, b_cost, head_cost, w_cost)
    start = sum((before or {}).values())
    total = start + simulation.total + sum((after or {}).values())
    size = (np.clip(0.3 * total / f_cost, 6, 16), 1.3 + 0.42 * schedule.stages)
    ax = ax or new_axes("Schedule.plot", *size)
    for stage in range(schedule.stages):
        ax.broken_barh([(0, total)], (stage - 0.43, 0.86), facecolor=IDLE)
    ax.margins(x=0)
    _draw_around(ax, schedule, 0.0, before or {})
    _draw_around(ax, schedule, start + simulation.total, after or {})
    f_starts, head_starts, b_starts, w_starts = start + _starts(schedule, costs)
    _draw_cells(ax, schedule, "F", f_starts, costs.f)
    if head_cost:
        _draw_heads(ax, schedule, head_starts, costs.head)
    if "B" in schedule.kinds:
        _draw_cells(ax, schedule, "B", b_starts, costs.b)
    if "W" in schedule.kinds:
        _draw_cells(ax, schedule, "W", w_starts, costs.w)
    _decorate(ax, schedule, bool(head_cost), simulation.bubble_fraction)
    return ax


def _starts(schedule: Schedule, costs: Costs) -> np.ndarray:
    """Returns `[4, ticks, stages]`, when F, head, B and W start: F with the tick, the others late.

    So B and W end with their tick, and the shares of a head line up wherever there is room.
    """
    work = costs.work(schedule)
    f, head, b, w = work
    tick_ends = np.cumsum(work.sum(axis=0).max(axis=1))[:, None]
    f_starts = np.concatenate([[[0.0]], tick_ends[:-1]]) + np.zeros_like(f)
    late = (b + w).max(axis=1, keepdims=True)
    head_starts = np.maximum(tick_ends - late - head, f_starts + f)
    return np.stack([f_starts, head_starts, tick_ends - w - b, tick_ends - w])


def _draw_cells(ax: Axes, schedule: Schedule, kind: Kind, starts: np.ndarray, width: float) -> None:
    """Draws the tasks of one kind; `starts`: `[ticks, stages]`, when one there starts."""
    microbatches, chunks = schedule.column(kind)
    points = _points(ax, width)
    font_size = min(9.0, 1.5 * points / len(str(schedule.microbatches - 1)))
    for stage in range(schedule.stages):
        busy = np.flatnonzero(microbatches[:, stage] >= 0)
        ax.broken_barh(
            [(starts[tick, stage], width) for tick in busy],
            (stage - 0.43, 0.86),
            facecolor=[cell_color(kind, chunks[tick, stage], schedule.chunks) for tick in busy],
            edgecolor="white",
            linewidth=min(0.6, 0.08 * points),
        )
        if font_size < 5.5:  # points; smaller is not readable
            continue
        for tick in busy:
            ax.text(
                starts[tick, stage] + width / 2,
                stage,
                str(microbatches[tick, stage]),
                ha="center",
                va="center_baseline",
                fontsize=font_size,
                color="white" if 2 * chunks[tick, stage] < schedule.chunks else INK,
                clip_on=True,
            )


def _draw_heads(ax: Axes, schedule: Schedule, starts: np.ndarray, width: float) -> None:
    """Draws the loss heads, of which every stage has its share; `starts`: `[ticks, stages]`."""
    for stage in range(schedule.stages):
        spans = [(start, width) for start in starts[schedule.head >= 0, stage]]
        ax.broken_barh(spans, (stage - 0.43, 0.86), facecolor=COLORS["head"], linewidth=0)


def _draw_around(ax: Axes, schedule: Schedule, start: float, parts: Mapping[str, float]) -> None:
    """Draws what all stages do beside the ticks, from `start` on, named where there is room."""
    for name, width in parts.items():
        middle = (schedule.stages - 1) / 2
        ax.broken_barh(
            [(start, width)],
            (-0.43, schedule.stages - 0.14),
            facecolor=_AROUND,
            edgecolor="white",
            linewidth=0.6,
        )
        room = _points(ax, width)
        height = ax.get_window_extent().height * 72 / ax.figure.dpi
        upright = room < 0.56 * SMALL * (len(name) + 1)
        if room > 1.3 * SMALL and (not upright or height > 0.7 * SMALL * len(name)):
            ax.text(
                start + width / 2,
                middle,
                name,
                ha="center",
                va="center",
                rotation=90 if upright else 0,
                fontsize=SMALL,
                color=text_color(_AROUND),
                clip_on=True,
            )
        start += width


def _points(ax: Axes, width: float) -> float:
    """The length on paper of `width` on the x axis."""
    low, high = ax.get_xlim()
    return width / (high - low) * ax.get_window_extent().width * 72 / ax.figure.dpi


def _decorate(ax: Axes, schedule: Schedule, heads: bool, bubble_fraction: float) -> None:
    """Names the stages, the time axis and the colours, and gives the bubble in the title."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    kinds: list[str] = list(schedule.kinds)
    if heads:
        kinds.insert(1, "head")
    handles = [
        tuple(
            Patch(color=cell_color(kind, chunk, schedule.chunks))
            for chunk in range(1 if kind == "head" else schedule.chunks)
        )
        for kind in kinds
    ]
    ax.legend(
        handles,
        kinds,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2,
        borderpad=0.2,
        handlelength=1.6,
        handletextpad=0.5,
        columnspacing=1.2,
        ncols=len(kinds),
        frameon=False,
        fontsize=SMALL,
    )
    chunks = f", {schedule.chunks} chunks" if schedule.chunks > 1 else ""
    ax.set_title(
        f"{schedule.name}{chunks}: bubble {100 * bubble_fraction:.1f} % of the work",
        loc="left",
        fontsize=10,
    )
    if ax.xaxis.get_tick_params()["labelbottom"]:  # not on the upper plots of a shared x axis
        ax.set_xlabel("time", loc="left", fontsize=SMALL)
    ax.set_ylim(schedule.stages - 0.5, -0.5)
    ax.set_yticks(range(schedule.stages), [f"stage {stage}" for stage in range(schedule.stages)])
    ax.tick_params(length=0, labelsize=SMALL)
    ax.spines[:].set_visible(False)
