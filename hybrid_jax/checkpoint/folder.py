"""The folder of a run's checkpoints: which steps are in it, and what is known of each."""

from __future__ import annotations

import warnings
from pathlib import Path

from hybrid_jax.checkpoint import integrity
from hybrid_jax.checkpoint.manifest import Damaged, Manifest, read_manifest
from hybrid_jax.errors import UserError


class StepFolder:
    """The saved steps of a run, each a folder named by its number.

    Args:
      path: made if missing.
      metric: what steps are compared by.
      sign: 1 where a larger value of it is better, -1 where a smaller one is.
      process: index of this process, for the probe that it writes.

    Raises:
      UserError: the folder cannot be made or written to.
    """

    def __init__(self, path: str | Path, metric: str, sign: int, process: int) -> None:
        self.path = Path(path).expanduser().absolute()
        self.metric = metric
        self.sign = sign
        self._manifests: dict[int, Manifest] = {}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable.{process}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"checkpoint folder {str(self.path)!r} cannot be written to: {error.strerror}; "
                "choose another folder."
            ) from None
        for folder in sorted(self.path.glob("*.orbax-checkpoint-tmp*")):
            step = folder.name.partition(".")[0]
            warnings.warn(
                f"checkpoint step {step} in {self.path} is half-written: skipped.", stacklevel=4
            )

    def __truediv__(self, step: int) -> Path:
        return self.path / str(step)

    @property
    def steps(self) -> list[int]:
        """Saved steps, oldest first, those that turn out to be damaged too."""
        if not self.path.is_dir():
            return []
        names = (folder.name for folder in self.path.iterdir() if folder.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    @property
    def last_good(self) -> int | None:
        """The newest step that has been read back and found right."""
        return max(filter(self.is_verified, self.steps), default=None)

    @property
    def best(self) -> int | None:
        """The step with the best metric; None where none has it."""
        scored = [(score, step) for step in self.steps if (score := self.score(step)) is not None]
        return max(scored)[1] if scored else None

    def find(self, step: int | None) -> int:
        """Returns `step`, or the newest one.

        Raises:
          UserError: it is not there, or nothing is.
        """
        steps = self.steps
        if not steps:
            raise UserError(f"no checkpoint in {self.path}: train first, or give another folder.")
        if step is not None and step not in steps:
            raise UserError(
                f"no checkpoint of step {step} in {self.path}: choose one of "
                f"{', '.join(map(str, steps))}."
            )
        return steps[-1] if step is None else step

    def manifest(self, step: int, *, again: bool = False) -> Manifest:
        """Returns the manifest of a step; read from its file once, or `again`.

        Raises:
          Damaged: it is not what was written.
        """
        if again or step not in self._manifests:
            self._manifests[step] = read_manifest(self / step)
        return self._manifests[step]

    def is_verified(self, step: int) -> bool:
        """Whether a step has been read back and found right."""
        return integrity.is_verified(self / step)

    def score(self, step: int) -> float | None:
        """How good a step is by the metric, the higher the better; None where it is not known."""
        try:
            value = self.manifest(step).metrics.get(self.metric)
        except Damaged:
            return None
        return None if value is None else self.sign * value

    def set_aside(self, step: int) -> None:
        """Renames a damaged step, so that it is there for a person and gone for a program."""
        target, number = self.path / f"{step}.damaged", 1
        while target.exists():
            number += 1
            target = self.path / f"{step}.damaged.{number}"
        (self / step).rename(target)
