"""The timeline of a schedule as text for a terminal, and the colours of its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

import numpy as np

from hybrid_jax.figures import BLUE, ORANGE, TEAL, VIOLET, lighter
from hybrid_jax.pipeline.tasks import KINDS, Kind

if TYPE_CHECKING:
    from rich.text import Text

    from hybrid_jax.pipeline.task_table import Schedule

COLORS = {"F": BLUE, "B": ORANGE, "W": VIOLET, "head": TEAL}


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


def _tick_column(schedule: Schedule, tick: int) -> list[Text]:
    """Returns the texts of one tick, all of one width: its number, then a cell per stage.

    Kinds have places of their own where some stage runs several, else they share one.
    """
    from rich.text import Text

    runs = {kind: schedule.column(kind).microbatch[tick] >= 0 for kind in KINDS}  # [stages]
    places: list[tuple[Kind, ...]] = [(kind,) for kind in KINDS if runs[kind].any()]
    if np.sum(list(runs.values()), axis=0).max() <= 1:
        places = [KINDS]
    cells = []
    for stage in range(schedule.stages):
        shown: list[list[Kind]] = [
            [kind for kind in place if runs[kind][stage]] for place in places
        ]
        cells.append(Text(" ").join(_cell(schedule, kinds, tick, stage) for kinds in shown))
    return [Text(str(tick).rjust(len(cells[0])), style="bright_black"), *cells]


def _cell(schedule: Schedule, kinds: list[Kind], tick: int, stage: int) -> Text:
    """Returns the text of the one task of these kinds, or of none."""
    from rich.text import Text

    width = 1 + len(str(schedule.microbatches - 1))
    if schedule.chunks > 1:
        width += 1 + len(str(schedule.chunks - 1))
    if not kinds:
        return Text("··".rjust(width), style="bright_black")
    (kind,) = kinds
    microbatches, chunks = schedule.column(kind)
    chunk = int(chunks[tick, stage])
    suffix = f".{chunk}" if schedule.chunks > 1 else ""
    label = f"{kind}{microbatches[tick, stage]}{suffix}".rjust(width)
    return Text(label, style=f"black on {cell_color(kind, chunk, schedule.chunks)}")


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


def cell_color(kind: str, chunk: int, chunks: int) -> str:
    """Returns the colour of a chunk's F, B or W: full for the first, lighter for later ones."""
    towards_white = 0.5 * chunk / max(chunks - 1, 1)
    return lighter(COLORS[kind], towards_white)
