"""Drawings of a schedule: text for a terminal, a matplotlib figure for a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

import numpy as np

from hybrid_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.text import Text

    from hybrid_jax.pipeline.schedule import Schedule

COLORS = {"F": (0x2F, 0x66, 0xA9), "B": (0xD9, 0x6B, 0x1F)}  # blue, orange: told apart by all eyes
IDLE_COLOR = "#eef0f3"


def print_timeline(schedule: Schedule, file: TextIO | None = None) -> None:
    """Prints one row per stage and one column per tick, in blocks as wide as the terminal.

    A cell reads `F3` for the forward of microbatch 3, `F3.1` for its chunk 1 where stages have
    several chunks, and `··` where the stage is idle.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file)
    bubble = 100 * schedule.simulate().bubble_fraction
    chunks = f", {schedule.chunks} chunks" if schedule.chunks > 1 else ""
    text = Text(
        f"{schedule.name}: {schedule.stages} stages, {schedule.microbatches} microbatches{chunks}, "
        f"{schedule.num_ticks} ticks, bubble {bubble:.1f} % of the work"
    )
    text.stylize("bold")
    labels = ["tick", *(f"stage {stage}" for stage in range(schedule.stages))]
    margin = len(labels[-1]) + 2
    ticks = [_tick_column(schedule, tick) for tick in range(schedule.num_ticks)]
    for i, block in enumerate(_fit(ticks, console.width - margin)):
        text.append("\n" if i else "")
        for row, label in enumerate(labels):
            text.append(f"\n{label:{margin}}")
            text.append_text(Text("  ").join([column[row] for column in block]))
    console.print(text, soft_wrap=True)


def plot_timeline(
    schedule: Schedule, ax: Axes | None = None, *, f_cost: float = 1.0, b_cost: float = 2.0
) -> Axes:
    """Draws the lockstep timeline: a row per stage, the microbatch's number in each cell.

    Forwards are blue, backwards orange, later chunks lighter; grey is the bubble. Widths are the
    costs, in the unit of `f_cost` and `b_cost` (one stage's forward and backward of a microbatch),
    so schedules of the same model drawn on a shared x axis compare at a glance.

    Args:
      ax: where to draw; by default a new figure of a fitting size.
      f_cost, b_cost: as in `Schedule.simulate`.

    Returns:
      The axes, on which the caller may go on drawing.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise UserError(
            "Schedule.plot needs matplotlib, which is not installed: "
            "pip install 'hybrid-jax[notebook]'"
        ) from error
    simulation = schedule.simulate(f_cost, b_cost)
    if ax is None:
        size = (np.clip(0.3 * simulation.total / f_cost, 6, 16), 1.3 + 0.42 * schedule.stages)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    for stage in range(schedule.stages):
        ax.broken_barh([(0, simulation.total)], (stage - 0.43, 0.86), facecolor=IDLE_COLOR)
    ax.margins(x=0)
    tick_starts = np.concatenate([[0.0], simulation.tick_ends[:-1]])
    _draw_cells(ax, schedule, "F", tick_starts, f_cost / schedule.chunks)
    kinds = ["F"]
    if (schedule.b_microbatch >= 0).any():
        b_width = b_cost / schedule.chunks
        _draw_cells(ax, schedule, "B", simulation.tick_ends - b_width, b_width)
        kinds.append("B")
    _decorate(ax, schedule, kinds, simulation.bubble_fraction)
    return ax


def _color(kind: str, chunk: int, chunks: int) -> str:
    """Returns the colour of a chunk's F or B: full for the first, lighter for later ones."""
    towards_white = 0.5 * chunk / max(chunks - 1, 1)
    return "#" + "".join(f"{round(c + (255 - c) * towards_white):02x}" for c in COLORS[kind])


def _tables(schedule: Schedule, kind: str) -> tuple[np.ndarray, np.ndarray]:
    if kind == "F":
        return schedule.f_microbatch, schedule.f_chunk
    return schedule.b_microbatch, schedule.b_chunk


def _tick_column(schedule: Schedule, tick: int) -> list[Text]:
    """Returns the texts of one tick, all of one width: its number, then a cell per stage."""
    from rich.text import Text

    width = 1 + len(str(schedule.microbatches - 1))
    if schedule.chunks > 1:
        width += 1 + len(str(schedule.chunks - 1))
    rows = [[] for _ in range(schedule.stages)]
    for kind in "FB":
        microbatches, chunks = _tables(schedule, kind)
        if (microbatches[tick] < 0).all():
            continue
        for stage, row in enumerate(rows):
            if microbatches[tick, stage] < 0:
                row.append(Text("··".rjust(width), style="bright_black"))
                continue
            chunk = int(chunks[tick, stage])
            suffix = f".{chunk}" if schedule.chunks > 1 else ""
            label = f"{kind}{microbatches[tick, stage]}{suffix}".rjust(width)
            row.append(Text(label, style=f"black on {_color(kind, chunk, schedule.chunks)}"))
    cells = [Text(" ").join(row) for row in rows]
    return [Text(str(tick).rjust(len(cells[0])), style="bright_black"), *cells]


def _fit(ticks: list[list[Text]], width: int) -> list[list[list[Text]]]:
    """Cuts the columns of ticks into blocks whose lines are at most `width` long."""
    blocks: list[list[list[Text]]] = [[]]
    used = 0
    for column in ticks:
        needed = len(column[0]) + 2
        if blocks[-1] and used + needed > width:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += needed
    return blocks


def _draw_cells(ax: Axes, schedule: Schedule, kind: str, starts: np.ndarray, width: float) -> None:
    """Draws the F or the B slots; `starts`: `[ticks]`, when a slot of that kind starts."""
    microbatches, chunks = _tables(schedule, kind)
    low, high = ax.get_xlim()
    points = width / (high - low) * ax.get_window_extent().width * 72 / ax.figure.dpi
    font_size = min(9.0, 1.5 * points / len(str(schedule.microbatches - 1)))
    for stage in range(schedule.stages):
        busy = np.flatnonzero(microbatches[:, stage] >= 0)
        ax.broken_barh(
            [(starts[tick], width) for tick in busy],
            (stage - 0.43, 0.86),
            facecolor=[_color(kind, chunks[tick, stage], schedule.chunks) for tick in busy],
            edgecolor="white",
            linewidth=0.6,
        )
        if font_size < 4.5:  # points; smaller is not readable
            continue
        for tick in busy:
            ax.text(
                starts[tick] + width / 2,
                stage,
                str(microbatches[tick, stage]),
                ha="center",
                va="center_baseline",
                fontsize=font_size,
                color="white" if 2 * chunks[tick, stage] < schedule.chunks else "#1d2733",
                clip_on=True,
            )


def _decorate(ax: Axes, schedule: Schedule, kinds: list[str], bubble_fraction: float) -> None:
    """Names the stages, the time axis and the colours, and gives the bubble in the title."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    shades = range(schedule.chunks)
    handles = [
        tuple(Patch(color=_color(kind, chunk, schedule.chunks)) for chunk in shades)
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
        ncols=2,
        frameon=False,
        fontsize=8,
    )
    chunks = f", {schedule.chunks} chunks" if schedule.chunks > 1 else ""
    ax.set_title(
        f"{schedule.name}{chunks}: bubble {100 * bubble_fraction:.1f} % of the work",
        loc="left",
        fontsize=10,
    )
    if ax.xaxis.get_tick_params()["labelbottom"]:  # not on the upper plots of a shared x axis
        ax.set_xlabel("time", loc="left", fontsize=8)
    ax.set_ylim(schedule.stages - 0.5, -0.5)
    ax.set_yticks(range(schedule.stages), [f"stage {stage}" for stage in range(schedule.stages)])
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
