"""Remembers which token files have been verified, so that not every run reads them whole.

A record is an empty file whose name is a hash of all that it stands for: it cannot be half
written, several processes may write the same one at once, and a corpus may be read-only. It lies
in `$XDG_CACHE_HOME/hybrid_jax/verified` (`~/.cache/...` where that is not set). Where nothing can
be written there, every run verifies anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hybrid_jax.data.entries import stamp
from hybrid_jax.data.header import Header

# Clocks of file systems tick this seldom: a later change may not change the time.
_TICK_NS = 2 * 10**9


def find_record(header: Header, statuses: Sequence[os.stat_result]) -> Path | None:
    """Returns the file that, where it exists, says that these files hold what `header` says.

    None where this user has no home folder. The device is left out: the same network file system
    has another number on each machine.
    """
    what = [asdict(header), [stamp(status) for status in statuses]]
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "hybrid_jax" / "verified" / name


def is_settled(statuses: Sequence[os.stat_result]) -> bool:
    """Tells whether a change from now on is sure to change the times of the files."""
    last = max(max(status.st_mtime_ns, status.st_ctime_ns) for status in statuses)
    return time.time_ns() - last > _TICK_NS


def write_record(record: Path) -> None:
    """Makes the record; where that fails, the next run verifies anew and none is wrong."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()
    except OSError:
        pass
