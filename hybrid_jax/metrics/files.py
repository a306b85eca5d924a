"""Metrics in files: JSON lines, and TensorBoard events."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

# Made by protobuf at import, out of sight of type checkers.
Event, SessionLog = event_pb2.Event, event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
Summary = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]


class JsonlWriter:
    """Appends one JSON object per record to a file, which is whole after every record.

    A number that JSON cannot hold (NaN, infinity) becomes null.

    Args:
      path: of the file; missing folders are made.
      resume_from: records of an earlier run beyond this step are dropped, and a line that it could
        not finish; None: all stay.

    Raises:
      OSError: the file cannot be written, here and in `write`.
    """

    essential = True

    def __init__(self, path: str | Path, resume_from: int | None = None) -> None:
        path = Path(path)
        self.name = str(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_from is not None and path.exists():
            _drop_records(path, resume_from)
        self._file = path.open("ab", buffering=0)  # each line is written at once: survives a kill

    def write(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
        _append(self._file, (json.dumps({"step": step, **finite}) + "\n").encode())

    def close(self) -> None:
        self._file.close()


def _append(file: io.FileIO, record: bytes) -> None:
    """Appends a record, or nothing of it: a disk that gets full takes a part."""
    end = file.tell()
    try:
        while record:
            record = record[file.write(record) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def _drop_records(path: Path, last_step: int) -> None:
    """Rewrites a file without the records beyond `last_step`, all at once, if it has any."""
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step(line) <= last_step]
    if kept == lines:
        return
    new = path.with_suffix(f"{path.suffix}.new")
    try:
        with new.open("w") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _step(line: str) -> float:
    """The step of a record; infinite for what a kill has left of one."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf


class TensorBoardWriter:
    """Writes every value as a TensorBoard scalar of its name, at once and in the caller's thread.

    tensorboardX formats the events. Its own `SummaryWriter` writes them on a thread that dies of a
    full disk without a word; then its queue fills, and the caller waits for ever.

    Args:
      folder: of the event file; made where it is missing.
      resume_from: TensorBoard hides what an earlier run wrote beyond this step; None: all is shown.

    Raises:
      OSError: the file cannot be written, here and in `write`.
    """

    essential = True

    def __init__(self, folder: str | Path, resume_from: int | None = None) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        begun, host = int(time.time()), socket.gethostname()
        path = folder / f"events.out.tfevents.{begun}.{host}.{os.getpid()}"
        self.name = str(path)
        self._file = path.open("ab", buffering=0)
        self._write(Event(file_version="brain.Event:2"))
        if resume_from is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=resume_from + 1, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
        _append(self._file, b"".join((length, sums[0], content, sums[1])))
