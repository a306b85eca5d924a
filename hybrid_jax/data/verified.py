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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from hybrid_jax.data.entries import Stamp
from hybrid_jax.data.header import Header


def find_record(header: Header, stamps: Sequence[Stamp]) -> Path | None:
    """Returns the file that, where it exists, says that these files hold what `header` says.

    None where this user has no home folder.
    """
    what = [asdict(header), [asdict(stamp) for stamp in stamps]]
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "hybrid_jax" / "verified" / name


def has_record(record: Path | None) -> bool:
    """Tells whether the record is there, and can be seen."""
    try:
        return record is not None and record.exists()
    except OSError:  # the folder of another user
        return False


def write_record(record: Path | None) -> None:
    """Makes the record; where that fails, the next run verifies anew and none is wrong."""
    if record is not None:
        with suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            record.touch()
