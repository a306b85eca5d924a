"""Which checkpoints stay on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orbax.checkpoint.checkpoint_managers import PreservationPolicy


@dataclass(frozen=True)
class KeepVerified(PreservationPolicy):
    """Keeps the last and the best verified steps, and all that are newer than the last of them.

    A step is therefore deleted only when a later one has been read back and found right.

    Attributes:
      last: how many of the newest verified steps to keep, at least 1.
      best: how many of the best.
      is_verified: step -> whether it has been read back.
      score: step -> how good it is, the higher the better; None where that is not known.
    """

    last: int
    best: int
    is_verified: Callable[[int], bool]
    score: Callable[[int], float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns, for each checkpoint (with a `step`, oldest first), whether it stays."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        verified = [step for step in steps if self.is_verified(step)]
        newest = verified[-1] if verified else -1
        scored = [(score, step) for step in verified if (score := self.score(step)) is not None]
        best = [step for _, step in sorted(scored, reverse=True)[: self.best]]
        kept = {*verified[-self.last :], *best}
        return [step in kept or step > newest for step in steps]
