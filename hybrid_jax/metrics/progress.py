"""The progress of a run in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class ProgressBar:
    """Shows step, loss, tokens/s and time left: a live bar, or plain lines outside a terminal.

    Args:
      steps: length of the run.
      console: where to show it.
    """

    name, essential = "the terminal", False

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self.steps = steps
        self.console = Console() if console is None else console
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("compile", total=steps, text="")
        self._bar.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if "eval_loss" in values:
            self._print(step, f"held-out loss {values['eval_loss']:.3f}")
            return
        text = describe(values, self.steps - step)
        self._bar.update(self._task, description="train", completed=step, text=text)
        if not self.console.is_terminal:
            self._print(step, text)

    def _print(self, step: int, text: str) -> None:
        width = len(str(self.steps))
        line = f"step {step:>{width}}/{self.steps}  {text}"
        self._bar.console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def describe(values: Mapping[str, float], steps_left: int) -> str:
    """Returns one line of the values that a person wants to see while waiting.

    >>> describe({"loss": 2.5, "step_seconds": 0.5, "tokens_per_second": 8192.0}, 120)
    'loss 2.500  8,192 tokens/s  1:00 left'
    """
    parts = []
    if "loss" in values:
        parts.append(f"loss {values['loss']:.3f}")
    if "grad_norm" in values:
        parts.append(f"grad norm {values['grad_norm']:.2f}")
    if values.get("skipped"):
        parts.append(f"{values['skipped']:.0f} skipped")
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.1%}")
    if values.get("input_wait_share", 0.0) > 0.01:
        parts.append(f"input wait {values['input_wait_share']:.0%}")
    if "step_seconds" in values:
        parts.append(f"{format_seconds(values['step_seconds'] * steps_left)} left")
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """Returns a duration as people write it.

    >>> format_seconds(75), format_seconds(90000)
    ('1:15', '1 day, 1:00:00')
    """
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")
