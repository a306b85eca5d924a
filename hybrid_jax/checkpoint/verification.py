"""Reads a saved step back in the background."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hybrid_jax.checkpoint import integrity
from hybrid_jax.checkpoint.manifest import Damaged, Manifest

# After which a file server has shown every machine what one of them has renamed.
_SECONDS_UNTIL_SEEN = 60


class Verification(threading.Thread):
    """Waits until a step is on disk, compares this process's share of it, and stamps it.

    Args:
      folder: of the step, which appears when it is whole.
      manifest: of what was saved.
      part: (index, number) of this process's share.
      write: returns when the step has been written; raises what went wrong.
      tidy: called when this share is verified.

    Attributes:
      failure: what was wrong; None while nothing is.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        part: tuple[int, int],
        write: Callable[[], None],
        tidy: Callable[[], None],
    ) -> None:
        super().__init__(name=f"verify step {manifest.step}", daemon=True)
        self.folder = folder
        self.manifest = manifest
        self.part = part
        self.failure: str | None = None
        self._write = write
        self._tidy = tidy

    def run(self) -> None:
        """Does it; what goes wrong is in `failure`."""
        step, parent = self.manifest.step, self.folder.parent
        try:
            self._write()
        except Exception as error:  # whatever Orbax makes of a full disk or a lost process
            self.failure = cannot_save(self.folder, error)
            return
        try:
            self._wait_for_folder()
            integrity.read_back(self.folder, self.manifest, *self.part)
            integrity.stamp(self.folder, *self.part)
            self._tidy()
        except Damaged as damage:
            self.failure = f"checkpoint step {step} in {parent} was written wrong: {damage}"
        except Exception as error:  # OSError, or what tensorstore makes of it
            reason = cause(error)
            self.failure = f"checkpoint step {step} in {parent} cannot be read back: {reason}"

    def _wait_for_folder(self) -> None:
        end = time.monotonic() + _SECONDS_UNTIL_SEEN
        while not self.folder.exists() and time.monotonic() < end:
            time.sleep(0.02)


def cannot_save(folder: Path, error: Exception) -> str:
    """Returns what to say of a step that could not be written."""
    return f"checkpoint step {folder.name} cannot be saved in {folder.parent}: {cause(error)}"


def cause(error: BaseException) -> str:
    """Returns the innermost reason, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    if code := re.search(r"os_error_code='(\d+)'", text):  # tensorstore: a long tale of one errno
        return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {text[:300]}"
