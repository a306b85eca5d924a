"""Which checkpoints stay on disk."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_jax.checkpoint.folder import StepFolder


@dataclass(frozen=True)
class Retention:
    """Keeps the last and the best verified steps, and all that are newer than the last of them.

    A step is therefore deleted only when a later one has been read back and found right.

    Attributes:
      last: how many of the newest verified steps to keep, at least 1.
      best: how many of the best.
    """

    last: int
    best: int

    def superseded(self, folder: StepFolder) -> list[int]:
        """Returns the steps that may be deleted; those found damaged are set aside instead."""
        steps = folder.steps
        verified = [step for step in steps if folder.is_verified(step)]
        if not verified:
            return []
        scored = [(score, step) for step in verified if (score := folder.score(step)) is not None]
        best = [step for _, step in sorted(scored, reverse=True)[: self.best]]
        kept = {*verified[-self.last :], *best}
        return [step for step in steps if step not in kept and step < verified[-1]]
