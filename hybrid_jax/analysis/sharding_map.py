"""The parameter-sharding map: which device holds which part of which parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hybrid_jax.analysis.parameters import ParameterRow
from hybrid_jax.figures import (
    BLUE,
    IDLE,
    INK,
    MUTED,
    ORANGE,
    SMALL,
    TEAL,
    WIDTH,
    new_axes,
    write_beside,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hybrid_jax.config.strategy import Strategy

_SHADES = ("#1b3c63", BLUE, TEAL, "#f5cfb3", ORANGE, "#6e2f07")


def plot_overview(strategy: Strategy, rows: Sequence[ParameterRow], ax: Axes | None = None) -> Axes:
    """Draws a row for each parameter and a column for each device.

    A cell stands for the whole array; the coloured piece of it is what the device holds. Equal
    pieces in a row are copies.
    """
    ax = ax or new_axes("Report.plot_shardings", WIDTH, overview_height(strategy, rows))
    for y, row in enumerate(rows):
        _draw_row(ax, y, row)
        write_beside(ax, y, row.path, -4, "right", at=0.0)
        shape = " x ".join(map(str, row.shape)) or "scalar"
        write_beside(ax, y, shape, 4, "left", color=MUTED)
        write_beside(ax, y, share(row), 96, "left", color=MUTED)
    levels = _name_devices(ax, strategy)
    ax.set_xlim(-0.5, strategy.num_devices - 0.5)
    ax.set_ylim(len(rows) - 0.4, -0.6 - 0.75 * levels)
    ax.set_axis_off()
    ax.set_title("Which part of each parameter a device holds", loc="left", fontsize=10, color=INK)
    return ax


def overview_height(strategy: Strategy, rows: Sequence[ParameterRow]) -> float:
    """Inches that the overview needs."""
    return 0.5 + 0.24 * (len(rows) + 0.75 * len(used_axes(strategy)))


def used_axes(strategy: Strategy) -> dict[str, int]:
    """Returns the mesh axes of more than one device, with their sizes."""
    return {axis: size for axis, size in strategy.axis_sizes.items() if size > 1}


def share(row: ParameterRow) -> str:
    """Returns into how many parts an array is cut, and how often each is there."""
    if row.num_parts == 1:
        return "whole on each device"
    copies = f", {row.copies} copies" if row.copies > 1 else ""
    return f"{row.num_parts} parts{copies}"


def shade(number: int, count: int) -> str:
    """Returns the colour of a part: near parts look alike, equal ones the same."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    colors = LinearSegmentedColormap.from_list("parts", list(_SHADES))
    return to_hex(colors(number / (count - 1))) if count > 1 else "#c3cad3"


def _draw_row(ax: Axes, y: int, row: ParameterRow) -> None:
    """Draws the cells of one parameter; where pieces would be hairlines, they fill the cell."""
    width, count = 0.9, row.num_parts
    cells = [(device - width / 2, width) for device in range(len(row.held))]
    ax.broken_barh(cells, (y - 0.36, 0.72), facecolor=IDLE)
    piece = width / count
    fills = count * len(cells) > 300
    ax.broken_barh(
        [
            (left, width) if fills else (left + part * piece, piece)
            for (left, _), part in zip(cells, row.held, strict=True)
        ],
        (y - 0.36, 0.72),
        facecolor=[shade(part, count) for part in row.held],
        label="held",
    )


def _name_devices(ax: Axes, strategy: Strategy) -> int:
    """Writes the mesh coordinates above the columns, a line for each axis; returns the lines."""
    used = used_axes(strategy)
    inner = strategy.num_devices
    for level, (axis, size) in enumerate(used.items()):
        y = -0.9 - 0.75 * (len(used) - 1 - level)
        write_beside(ax, y, axis, -4, "right", at=0.0, color=MUTED)
        inner //= size
        if strategy.num_devices // inner > 40:  # numbers would run into each other
            continue
        for group in range(strategy.num_devices // inner):
            middle = (group + 0.5) * inner - 0.5
            ax.text(middle, y, str(group % size), ha="center", va="center", fontsize=SMALL)
    return len(used)
