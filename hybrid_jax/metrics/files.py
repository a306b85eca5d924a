"""Metrics in files: JSON lines, and TensorBoard events."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter


class JsonlWriter:
    """Appends one JSON object per record to a file, which is whole after every record.

    A number that JSON cannot hold (NaN, infinity) becomes null.

    Args:
      path: of the file; missing folders are made.
      resume_from: records of an earlier run beyond this step are dropped, and a line that it could
        not finish; None: all stay.
    """

    def __init__(self, path: str | Path, resume_from: int | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_from is not None and path.exists():
            _drop_records(path, resume_from)
        self._file = path.open("a", buffering=1)  # flushed at every line: survives a kill

    def write(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        self._file.close()


def _drop_records(path: Path, last_step: int) -> None:
    """Rewrites a file without the records beyond `last_step`, all at once."""
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step(line) <= last_step]
    new = path.with_suffix(f"{path.suffix}.new")
    with new.open("w") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _step(line: str) -> float:
    """The step of a record; infinite for what a kill has left of one."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf


class TensorBoardWriter:
    """Writes every value as a TensorBoard scalar of its name.

    Args:
      folder: of the event files; made where it is missing.
      resume_from: TensorBoard hides what an earlier run wrote beyond this step; None: all is shown.
    """

    def __init__(self, folder: str | Path, resume_from: int | None = None) -> None:
        purge_step = None if resume_from is None else resume_from + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
