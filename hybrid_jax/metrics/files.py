"""Metrics in files: JSON lines, and TensorBoard events."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter


class JsonlWriter:
    """Appends one JSON object per record to a file, which is whole after every record.

    A number that JSON cannot hold (NaN, infinity) becomes null.

    Args:
      path: of the file; missing folders are made.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)  # flushed at every line: survives a kill

    def write(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """Writes every value as a TensorBoard scalar of its name.

    Args:
      folder: of the event files; made where it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
