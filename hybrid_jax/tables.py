"""Reports made of tables, which look alike in a terminal, a notebook and a file."""

from __future__ import annotations

import io
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 130


class Tables:
    """Shows itself, printed or at the end of a notebook cell, as what `__rich__` returns."""

    def __rich__(self) -> Any:
        """What rich prints: a table, a text or a group of them."""
        raise NotImplementedError

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        # The text too: IPython would show the fields of a dataclass.
        return {"text/plain": str(self), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH, record=True, force_jupyter=False)
        console.print(self)
        return console.export_html(
            inline_styles=True, code_format='<pre style="line-height: 1.2">{code}</pre>'
        )


def make_table(title: str, *columns: str, caption: str | None = None) -> Table:
    """Returns an empty table with these headers; ">" marks a column of numbers."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="dim",
    )
    for column in columns:
        justify = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    return table


def format_bytes(num_bytes: float) -> str:
    """Bytes with a binary unit and three digits.

    >>> format_bytes(1536), format_bytes(0)
    ('1.5 KiB', '0 B')
    """
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1000:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}"


def byte_unit(largest: float) -> tuple[str, int]:
    """The unit in which a column with this largest entry reads well, and its bytes.

    >>> byte_unit(3 * 2**30), byte_unit(5000)
    (('GiB', 1073741824), ('KiB', 1024))
    """
    for power, name in ((3, "GiB"), (2, "MiB")):
        if largest >= 0.1 * 2 ** (10 * power):
            return name, 2 ** (10 * power)
    return "KiB", 2**10


def format_flops(flops: float) -> str:
    """Floating-point operations with a decimal unit and three digits.

    >>> format_flops(2.5e12), format_flops(0)
    ('2.5 TFLOP', '0 FLOP')
    """
    amount, unit = float(flops), ""
    for larger in "kMGTPE":
        if abs(amount) < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.3g} {unit}FLOP"


def format_duration(seconds: float) -> str:
    """Seconds with a fitting unit and three digits.

    >>> format_duration(1.234), format_duration(0.0456), format_duration(0)
    ('1.23 s', '45.6 ms', '-')
    """
    if seconds == 0:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
