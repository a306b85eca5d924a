"""Pictures that look alike: colours, stacked bars, and matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Hues that all eyes tell apart, and shades of them that differ in lightness.
BLUE, ORANGE, TEAL, VIOLET = "#2f66a9", "#d96b1f", "#7cc4b8", "#6b4a94"
INK, MUTED, IDLE = "#1d2733", "#6b7683", "#eef0f3"

SUFFIXES = (".png", ".pdf", ".svg")
WIDTH = 11.0
"""Inches: what a notebook shows without scaling."""

SMALL = 8.0
"""Points of everything but titles."""


def pyplot(what: str) -> Any:
    """Returns `matplotlib.pyplot`, which only pictures need.

    Args:
      what: that needs it, for the message.

    Raises:
      UserError: it is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise UserError(
            f"{what} needs matplotlib, which is not installed: pip install 'hybrid-jax[notebook]'"
        ) from error
    return plt


def new_axes(what: str, width: float, height: float) -> Axes:
    """Returns the axes of a figure that a notebook shows. Sizes are in inches."""
    return pyplot(what).subplots(figsize=(width, height), layout="constrained")[1]


def new_figure(what: str, width: float, height: float) -> Figure:
    """Returns a figure to save, which no notebook shows by itself."""
    pyplot(what)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def check_picture_path(option: str, path: str) -> None:
    """Checks where a picture shall go, before the work that it shows.

    >>> check_picture_path("--save", "plan.jpeg")
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: --save plan.jpeg: the name must end in .png, .pdf or .svg.

    Raises:
      UserError: it is no picture's name, the folder is not there, or matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"{option} {path}: the name must end in .png, .pdf or .svg.")
    if not Path(path).parent.is_dir():
        raise UserError(f"{option} {path}: the folder {Path(path).parent} does not exist; make it.")
    if Path(path).is_dir():
        raise UserError(f"{option} {path} is a folder: name a file in it.")
    pyplot(option)


def lighter(color: str, towards_white: float) -> str:
    """Returns a shade between `color` and white.

    >>> lighter("#204060", 0.5)
    '#90a0b0'
    """
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + (255 - c) * towards_white):02x}" for c in channels)


def text_color(background: str) -> str:
    """Returns white, or ink where the background is light."""
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 150 else INK


def set_title(ax: Axes, text: str) -> None:
    """Writes a title on the left, with a line for a key below it."""
    ax.set_title(text, loc="left", fontsize=10, pad=20, color=INK)


def stacked_bars(ax: Axes, rows: Sequence[Mapping[str, float]], colors: Mapping[str, str]) -> None:
    """Draws a horizontal bar for each row, the first on top, its parts in the order of `colors`.

    Args:
      rows: part → length; a part may be absent.
      colors: part → colour.
    """
    starts = [0.0] * len(rows)
    for part, color in colors.items():
        widths = [row.get(part, 0.0) for row in rows]
        if any(widths):
            places = range(len(rows))
            ax.barh(
                places,
                widths,
                height=0.66,
                left=starts,
                color=color,
                edgecolor="white",
                linewidth=0.5,
                label=part,
            )
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(length=0, labelsize=SMALL)
    ax.spines[:].set_visible(False)


def end_bar(ax: Axes, row: int, length: float, text: str, *, color: str = INK) -> None:
    """Writes a number at the end of a bar, before any line that is there."""
    ax.annotate(
        text,
        (length, row),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
        fontweight="bold",
        color=color,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )


def write_beside(
    ax: Axes,
    row: float,
    text: str,
    points: float,
    align: str = "right",
    *,
    at: float = 1.0,
    size: float = SMALL,
    color: str = INK,
) -> None:
    """Writes in a column beside the bars, so many points from their right end (`at`=0: left)."""
    ax.annotate(
        text,
        (at, row),
        (points, 0),
        xycoords=ax.get_yaxis_transform(),
        textcoords="offset points",
        ha=align,
        va="center",
        annotation_clip=False,
        fontsize=size,
        color=color,
        linespacing=1.15,
    )


def name_parts(ax: Axes) -> None:
    """Writes the names of parts into the bars where there is room; a key has those that have none.

    Lays the figure out first, since what has room depends on it: call it when all else is drawn.
    """
    figure: Any = ax.get_figure(root=True)
    figure.draw_without_rendering()
    low, high = ax.get_xlim()
    points = ax.get_window_extent().width * 72 / figure.dpi / (high - low)
    unnamed = []
    for bars in ax.containers:  # one for each part
        name, named = str(bars.get_label()), False
        for bar in bars:
            if bar.get_width() * points < 0.56 * SMALL * (len(name) + 1):
                continue
            named = True
            ax.text(
                bar.get_x() + bar.get_width() / 2,
                bar.get_y() + bar.get_height() / 2,
                name,
                ha="center",
                va="center_baseline",
                fontsize=SMALL,
                color=text_color(_hex(bar)),
                bbox={"facecolor": _hex(bar), "edgecolor": "none", "pad": 0},
            )
        if not named:
            unnamed.append(bars)
    if unnamed:
        make_key(ax, unnamed, [str(bars.get_label()) for bars in unnamed])


def make_key(ax: Axes, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Says what colours mean, on the line between the title and the axes."""
    ax.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.1,
        borderpad=0.2,
        handlelength=1.0,
        handleheight=1.0,
        handletextpad=0.4,
        columnspacing=1.2,
        ncols=len(names),
        frameon=False,
        fontsize=SMALL,
    )


def _hex(bar: Any) -> str:
    from matplotlib.colors import to_hex

    return to_hex(bar.get_facecolor())
