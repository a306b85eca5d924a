"""The progress of preparing a corpus."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """Where `prepare` reports how far it is."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Told once: the bytes of all inputs, and those that an earlier run has finished."""
        ...

    def advance(self, num_bytes: int) -> None:
        """Told after each piece."""
        ...

    def say(self, line: str) -> None:
        """Told what a person should know."""
        ...


class Silent:
    """Tells nobody."""

    def start(self, total_bytes: int, done_bytes: int) -> None: ...

    def advance(self, num_bytes: int) -> None: ...

    def say(self, line: str) -> None: ...


class ByteBar:
    """A live bar with bytes per second; outside a terminal, a line for each tenth.

    Args:
      console: where to show it.
    """

    def __init__(self, console: Console) -> None:
        # Worker processes import this module, and have no use for rich.
        from rich import progress

        self._console = console
        self._total = self._done = self._tenth = 0
        self._bar = progress.Progress(
            progress.TextColumn("tokenize"),
            progress.BarColumn(bar_width=30),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def start(self, total_bytes: int, done_bytes: int) -> None:
        self._total, self._done = max(1, total_bytes), done_bytes
        self._tenth = 10 * done_bytes // self._total
        self._task = self._bar.add_task("", total=self._total, completed=done_bytes)
        self._bar.start()

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        self._bar.update(self._task, completed=self._done)
        tenth = 10 * self._done // self._total
        if tenth > self._tenth and not self._console.is_terminal:
            self.say(f"tokenized {10 * tenth} % of {self._total / 2**20:,.1f} MiB")
        self._tenth = tenth

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
