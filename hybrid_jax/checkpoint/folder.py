"""The folder of a run's checkpoints as a reader sees it: which steps are in it, how good they are.

Nothing here writes, and everything is looked up anew: another process may add steps and delete
them at any time.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from hybrid_jax.checkpoint import integrity
from hybrid_jax.checkpoint.manifest import Damaged, Manifest, read_manifest
from hybrid_jax.errors import UserError

Identity = tuple[int, int]


def step_number(name: str) -> int | None:
    """Returns the step whose folder has this name, None where it is the name of none.

    >>> [step_number(name) for name in ("10", "007", "1e3", "-1", "10 copy", "٣")]
    [10, None, None, None, None, None]
    """
    if not (name.isascii() and name.isdecimal() and len(name) <= 10):
        return None
    number = int(name)
    # A state counts its steps in an int32.
    return number if str(number) == name and number < 2**31 else None


class StepFolder:
    """The saved steps of a run, each a folder named by its number.

    Args:
      path: need not exist.
      metric: what steps are compared by.
      sign: 1 where a larger value of it is better, -1 where a smaller one is.
    """

    def __init__(self, path: Path, metric: str, sign: int) -> None:
        self.path = path
        self.metric = metric
        self.sign = sign
        self._scores: dict[int, tuple[Identity | None, float | None]] = {}
        self._damaged: dict[int, Identity | None] = {}

    def __truediv__(self, step: int) -> Path:
        return self.path / str(step)

    @property
    def present(self) -> list[int]:
        """All steps on disk, oldest first.

        Raises:
          UserError: the folder cannot be read.
        """
        try:
            with os.scandir(self.path) as entries:
                numbers = [step_number(entry.name) for entry in entries if entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(
                f"checkpoint folder {str(self.path)!r} cannot be read: {error.strerror}; give the "
                "folder of a run's checkpoints."
            ) from None
        return sorted(number for number in numbers if number is not None)

    @property
    def steps(self) -> list[int]:
        """Saved steps, oldest first, without those that were found damaged."""
        return [step for step in self.present if not self._is_damaged(step)]

    @property
    def damaged(self) -> list[int]:
        """Steps on disk that were found damaged."""
        return [step for step in self.present if self._is_damaged(step)]

    @property
    def last_good(self) -> int | None:
        """The newest step that has been read back and found right."""
        return next(filter(self.is_verified, reversed(self.steps)), None)

    @property
    def best(self) -> int | None:
        """The step with the best metric; None where none has it."""
        steps = self.steps
        scored = [(score, step) for step in steps if (score := self.score(step)) is not None]
        for gone in set(self._scores).difference(steps):
            self._scores.pop(gone, None)
        return max(scored)[1] if scored else None

    def find(self, step: int | None) -> int:
        """Returns `step`, or the newest one that is not known to be damaged.

        Raises:
          UserError: it is not there, or nothing is.
        """
        present = self.present
        if step is not None and step in present:
            return step
        if not present:
            nested = self.path / "checkpoints"
            remedy = f"give {str(nested)!r}" if nested.is_dir() else "give another folder"
            where = f"in {self.path}" if self.path.exists() else f"in {self.path}, which is missing"
            raise UserError(f"no checkpoint {where}: train first, or {remedy}.")
        if step is not None:
            raise UserError(
                f"no checkpoint of step {step} in {self.path}: choose one of "
                f"{', '.join(map(str, present))}."
            )
        if steps := self.steps:
            return steps[-1]
        raise UserError(
            f"every checkpoint in {self.path} is damaged (steps {self.damaged}): start again in "
            "another folder."
        )

    def manifest(self, step: int) -> Manifest:
        """Returns the manifest of a step, read anew.

        Raises:
          Damaged: it is not what was written.
          UserError: a release that this one does not understand has written it.
        """
        return read_manifest(self / step, step)

    def identity(self, step: int) -> Identity | None:
        """Returns what changes when a folder makes room for another; None where there is none."""
        try:
            found = (self / step).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def saved_at(self, step: int) -> str:
        """Returns when a step was saved, by its files, in local time."""
        try:
            seconds = (self / step / "manifest" / "metadata").stat().st_mtime
        except OSError:
            return "at a time unknown"
        return f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"

    def note_damage(self, step: int) -> None:
        """Leaves a step out of `steps` from now on, as long as this very folder is there."""
        self._damaged[step] = self.identity(step)

    def forget_damage(self, step: int | None = None) -> None:
        """Undoes `note_damage`, of all steps by default."""
        for noted in [step] if step is not None else list(self._damaged):
            self._damaged.pop(noted, None)

    @property
    def knows_damage(self) -> bool:
        """Whether damage was noted, wherever the steps may be now."""
        return bool(self._damaged)

    def is_verified(self, step: int) -> bool:
        """Whether a step has been read back and found right."""
        return integrity.is_verified(self / step)

    def score(self, step: int) -> float | None:
        """How good a step is by the metric, the higher the better; None where it is not known."""
        identity = self.identity(step)
        known = self._scores.get(step)
        if known is None or known[0] != identity:
            try:
                value = self.manifest(step).metrics.get(self.metric)
            except (Damaged, UserError):
                value = None
            known = identity, None if value is None else self.sign * value
            self._scores[step] = known
        return known[1]

    def _is_damaged(self, step: int) -> bool:
        return step in self._damaged and self._damaged[step] == self.identity(step)
