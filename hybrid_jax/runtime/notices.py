"""Lines that say what a process waits for: one soon, then ever more rarely."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_FIRST_SECONDS = (5.0, 30.0)  # then every minute


class Notices:
    """Prints to stderr what is being waited for, after 5 s, 30 s and then every minute."""

    def __init__(self) -> None:
        self._start, self._shown = time.monotonic(), 0

    def show(self, awaited: Callable[[], str]) -> None:
        """Prints a line if it is time for one; `awaited` is called only then."""
        later = self._shown >= len(_FIRST_SECONDS)
        after = 60.0 * (self._shown - 1) if later else _FIRST_SECONDS[self._shown]
        seconds = time.monotonic() - self._start
        if seconds >= after:
            self._shown += 1
            print(f"waiting for {awaited()} since {seconds:.0f} s", file=sys.stderr, flush=True)
