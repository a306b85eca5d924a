"""Pictures of an inspected step: shardings of the parameters, memory by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hybrid_jax.analysis.parameter_map import distinct, parameter_height, plot_parameter
from hybrid_jax.analysis.sharding_map import overview_height, plot_overview
from hybrid_jax.errors import UserError, nearest
from hybrid_jax.figures import (
    BLUE,
    ORANGE,
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
)
from hybrid_jax.tables import byte_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hybrid_jax.analysis.memory import MemoryReport
    from hybrid_jax.analysis.parameters import ParameterRow
    from hybrid_jax.analysis.report import Report

MAX_MAPS = 6
"""Parameters that `save` draws, one for each spec: the largest of it."""


def plot_shardings(report: Report, path: str | None = None, ax: Axes | None = None) -> Axes:
    """Draws which device holds which part: of all parameters, or of the one of this path."""
    if path is None:
        return plot_overview(report.strategy, report.parameters, ax)
    return plot_parameter(report.strategy, find_row(report.parameters, path), ax)


def find_row(rows: Sequence[ParameterRow], path: str) -> ParameterRow:
    """The row of a parameter.

    Raises:
      UserError: there is none of this path.
    """
    paths = [row.path for row in rows]
    if path not in paths:
        raise UserError(f"no parameter {path!r}: one of {', '.join(paths)}.{nearest(path, paths)}")
    return rows[paths.index(path)]


def plot_memory(report: Report, ax: Axes | None = None) -> Axes:
    """Draws what one device holds at the peak of the step, by part, as one bar."""
    ax = ax or new_axes("Report.plot_memory", WIDTH, _MEMORY_HEIGHT)
    parts = memory_parts(report.memory)
    unit, size = byte_unit(report.memory.total)
    row = {name: num_bytes / size for name, num_bytes in parts.items()}
    stacked_bars(ax, [row], {name: _part_color(name, parts) for name in parts})
    total = report.memory.total / size
    end_bar(ax, 0, total, f"{total:.3g}")
    ax.set_xlim(0, 1.06 * total)
    ax.set_yticks([])
    set_title(ax, f"Memory of one device at the peak of a step, {unit}")
    name_parts(ax)
    return ax


def memory_parts(memory: MemoryReport) -> dict[str, int]:
    """Returns part → bytes, which add up to the peak: the state by name, and what a step adds."""
    parts = dict(memory.state) or {"arguments": memory.argument}
    parts["padding"] = memory.argument - sum(parts.values())
    parts["results"] = memory.output - memory.alias
    parts["temporaries"] = memory.working
    return {name: num_bytes for name, num_bytes in parts.items() if num_bytes}


def save(report: Report, path: str) -> None:
    """Draws everything into one file: the map, a parameter of each spec, the memory."""
    check_picture_path("save", path)
    rows = distinct(report.parameters)[:MAX_MAPS]
    heights = [overview_height(report.strategy, report.parameters)]
    heights += [parameter_height(report.strategy, row) for row in rows]
    heights.append(_MEMORY_HEIGHT)
    figure = new_figure("save", WIDTH, sum(heights))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = [part.subplots() for part in parts]
    plot_overview(report.strategy, report.parameters, axes[0])
    for row, ax in zip(rows, axes[1:], strict=False):
        plot_parameter(report.strategy, row, ax)
    plot_memory(report, axes[-1])
    figure.savefig(path, dpi=150)


_MEMORY_HEIGHT = 1.4


def _part_color(name: str, parts: dict[str, int]) -> str:
    """State is blue, what a step adds orange."""
    known = {"parameters": "#1b3c63", "batch": TEAL, "temporaries": ORANGE, "results": "#8a3f0c"}
    moments = [other for other in parts if other.startswith("optimizer")]
    if name in moments:
        return lighter(BLUE, 0.5 * moments.index(name) / len(moments))
    return known.get(name, "#c3cad3")
