"""One parameter as an array cut into its parts, each with the devices that hold it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_jax.analysis.parameters import ParameterRow
from hybrid_jax.analysis.sharding_map import shade, share, used_axes
from hybrid_jax.figures import IDLE, INK, MUTED, SMALL, WIDTH, new_axes, text_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hybrid_jax.config.strategy import Strategy


def plot_parameter(strategy: Strategy, row: ParameterRow, ax: Axes | None = None) -> Axes:
    """Draws one parameter as an array cut into its parts, each with the devices that hold it.

    The last two dims that are cut are the sides of a rectangle; where more are cut, there is a
    rectangle for each part of those. Sheets behind a rectangle are its copies.
    """
    down, across, apart = _sides(row)
    ax = ax or new_axes("Report.plot_shardings", WIDTH, parameter_height(strategy, row))
    high, wide = _parts(row, down), _parts(row, across)
    panels = math.prod(row.parts[dim] for dim in apart)
    for panel in range(panels):
        left = panel * (wide + 0.25)
        _draw_sheets(ax, left, wide, high, row.copies)
        if apart:
            name = _panel_name(row, apart, panel)
            ax.text(left, -0.06 * high, name, ha="left", va="bottom", fontsize=SMALL, color=INK)
        if across is not None:
            name = _dim_name(row, across)
            ax.text(left + wide / 2, 1.03 * high, name, ha="center", va="top", fontsize=SMALL)
    if down is not None:
        name = _dim_name(row, down)
        ax.text(-0.01 * panels * wide, high / 2, name, ha="right", va="center", fontsize=SMALL)
    ax.set_xlim(0, panels * (wide + 0.25) - 0.2)
    ax.set_ylim(high, -0.1 * high if apart or row.copies > 1 else 0)
    ax.set_axis_off()
    shape = " x ".join(map(str, row.shape)) or "scalar"
    title = f"{row.path}, {shape}: {share(row)}"
    if strategy.chunks > 1 and "layers" in row.axes:
        title += "; layers in the order of the stages, not of depth"
    ax.set_title(title, loc="left", fontsize=10, color=INK, pad=16 if apart else 6)
    corners = []
    for number in range(row.num_parts):
        place = np.unravel_index(number, row.parts) if row.parts else ()
        panel = 0
        for dim in apart:
            panel = panel * row.parts[dim] + int(place[dim])
        x = panel * (wide + 0.25) + (int(place[across]) if across is not None else 0)
        corners.append((x, float(place[down]) if down is not None else 0.0))
    _draw_parts(ax, corners, row, strategy)
    return ax


def parameter_height(strategy: Strategy, row: ParameterRow) -> float:
    """Inches that the picture of one parameter needs."""
    down, _, apart = _sides(row)
    return 0.8 + (0.3 if apart else 0.0) + min(max(0.45 * _parts(row, down), 0.7), 6.0)


def distinct(rows: Sequence[ParameterRow]) -> list[ParameterRow]:
    """The largest parameter of each spec, in the order of the table."""
    largest: dict[str, ParameterRow] = {}
    for row in rows:
        entries = str(row.spec).replace(", None)", ")")  # `None` at the end says nothing
        if entries not in largest or row.bytes > largest[entries].bytes:
            largest[entries] = row
    return list(largest.values())


def _sides(row: ParameterRow) -> tuple[int | None, int | None, list[int]]:
    """The dims drawn downwards, across, and as rectangles apart."""
    cut = [dim for dim, parts in enumerate(row.parts) if parts > 1]
    rest = sorted(set(range(len(row.shape))) - set(cut), key=lambda dim: -row.shape[dim])
    chosen = sorted((cut[-2:] + rest)[:2]) if len(cut) < 2 else cut[-2:]
    if len(chosen) < 2:
        return None, (chosen[0] if chosen else None), []
    return chosen[0], chosen[1], cut[:-2]


def _parts(row: ParameterRow, dim: int | None) -> int:
    return 1 if dim is None else row.parts[dim]


def _dim_name(row: ParameterRow, dim: int) -> str:
    size, parts = row.shape[dim], row.parts[dim]
    cut = f" = {parts} x {size // parts}" if parts > 1 else ""
    return f"{row.axes[dim] or 'dim'} {size}{cut}"


def _panel_name(row: ParameterRow, apart: Sequence[int], panel: int) -> str:
    """The ranges of the dims that are drawn apart."""
    names = []
    for dim, part in zip(
        apart, np.unravel_index(panel, [row.parts[dim] for dim in apart]), strict=True
    ):
        size = row.shape[dim] // row.parts[dim]
        last = f"\N{EN DASH}{(part + 1) * size - 1}" if size > 1 else ""
        names.append(f"{row.axes[dim] or 'dim'} {part * size}{last}")
    return ", ".join(names)


def _draw_sheets(ax: Axes, left: float, wide: int, high: int, copies: int) -> None:
    from matplotlib.patches import Rectangle

    for sheet in range(min(copies, 4) - 1, 0, -1):
        corner = (left + 0.03 * sheet, -0.025 * sheet * high)
        style = {"facecolor": IDLE, "edgecolor": MUTED, "linewidth": 0.6}
        ax.add_patch(Rectangle(corner, wide, high, clip_on=False, **style))


def _draw_parts(
    ax: Axes, corners: Sequence[tuple[float, float]], row: ParameterRow, strategy: Strategy
) -> None:
    """Draws every part and writes the mesh coordinates of its devices into it, if there is room."""
    from matplotlib.patches import Rectangle

    figure: Any = ax.get_figure(root=True)
    figure.draw_without_rendering()
    box = ax.get_window_extent()
    scale = 72 / figure.dpi
    width = box.width * scale / abs(np.subtract(*ax.get_xlim()))
    height = box.height * scale / abs(np.subtract(*ax.get_ylim()))
    for number, (x, y) in enumerate(corners):
        color = shade(number, row.num_parts)
        ax.add_patch(
            Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white", linewidth=1, label="part")
        )
        text = _fit(_holders(row, number, strategy), width, height)
        style = {"ha": "center", "va": "center", "fontsize": SMALL, "linespacing": 1.15}
        ax.text(x + 0.5, y + 0.5, text, color=text_color(color), **style)


def _holders(row: ParameterRow, number: int, strategy: Strategy) -> list[str]:
    """The mesh coordinates that hold a part, such as "stage 1", "data 0-3"."""
    used = used_axes(strategy)
    devices = np.flatnonzero(row.held == number)
    coordinates = np.unravel_index(devices, tuple(used.values()) or (1,))
    words = []
    for axis, values in zip(used, coordinates, strict=False):
        low, high = values.min(), values.max()
        words.append(f"{axis} {low}" if low == high else f"{axis} {low}\N{EN DASH}{high}")
    return words or ["the device"]


def _fit(words: list[str], width: float, height: float) -> str:
    """The words on one line or below each other, or only their numbers, or nothing."""
    short = [word.split(" ")[-1] for word in words]
    for text in (", ".join(words), "\n".join(words), " \N{MIDDLE DOT} ".join(short), short[-1]):
        lines = text.split("\n")
        fits_across = max(map(len, lines)) * 0.56 * SMALL < width
        if fits_across and len(lines) * 1.25 * SMALL < height:
            return text
    return ""
