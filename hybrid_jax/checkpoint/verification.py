"""Reads a saved step back in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from hybrid_jax.checkpoint import integrity
from hybrid_jax.checkpoint.manifest import Damaged, Manifest


class Verification(threading.Thread):
    """Waits until a step is on disk, compares this process's share of it, and stamps it.

    Args:
      folder: of the step, which appears when it is whole.
      manifest: of what was saved.
      is_saving: whether the step may still appear.
      part: (index, number) of this process's share.

    Attributes:
      failure: what was wrong; None while nothing is.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        is_saving: Callable[[], bool],
        part: tuple[int, int],
    ) -> None:
        super().__init__(name=f"verify step {manifest.step}", daemon=True)
        self.folder = folder
        self.manifest = manifest
        self.is_saving = is_saving
        self.part = part
        self.failure: str | None = None

    def run(self) -> None:
        """Does it; what goes wrong is in `failure`."""
        while not self.folder.exists():
            if not self.is_saving() and not self.folder.exists():
                return  # saving failed, which whoever saves is told by Orbax
            time.sleep(0.02)
        try:
            integrity.read_back(self.folder, self.manifest, *self.part)
            integrity.stamp(self.folder, *self.part)
        except Damaged as damage:
            self.failure = f"was written wrong: {damage}"
        except (OSError, ValueError) as error:  # tensorstore raises ValueError
            self.failure = f"cannot be read back: {' '.join(str(error).split())[:300]}"
