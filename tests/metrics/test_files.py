"""Metric files: every JSON line is on disk when written; TensorBoard events hold every value."""

import json
import struct
import subprocess
import sys

import numpy as np
from tensorboardX.proto.event_pb2 import Event

from hybrid_jax.metrics.files import JsonlWriter, TensorBoardWriter


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_on_disk_before_the_file_is_closed(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.write(1, {"loss": 2.5})
    assert read(path) == [{"step": 1, "loss": 2.5}]
    writer.write(2, {"loss": float("nan"), "grad_norm": float("inf")})
    assert read(path)[1] == {"step": 2, "loss": None, "grad_norm": None}
    writer.close()


def test_a_second_run_appends(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        writer = JsonlWriter(path)
        writer.write(step, {})
        writer.close()
    assert [record["step"] for record in read(path)] == [1, 2]


def write_steps(path, steps, **options):
    writer = JsonlWriter(path, **options)
    for step in steps:
        writer.write(step, {"loss": 10.0 / step})
    writer.close()


def test_a_killed_and_resumed_run_leaves_the_file_of_one_run(tmp_path):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write_steps(whole, range(1, 9), resume_from=0)
    write_steps(resumed, range(1, 7))
    with resumed.open("a") as file:
        file.write('{"step": 7, "lo')  # killed amid a record
    write_steps(resumed, range(5, 9), resume_from=4)
    assert resumed.read_text() == whole.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.jsonl", "resumed.jsonl"}


def test_what_a_kill_has_left_of_a_record_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo{"step": 3}\n\xff\n{"step": 4}\n{"step": 5}')
    write_steps(path, [6], resume_from=9)
    assert [record["step"] for record in read(path)] == [1, 4, 6]


LIMITED = """
import resource, signal, sys
from hybrid_jax.metrics.files import JsonlWriter, TensorBoardWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
writer = {writer}
for step in range(1, 1000):
    try:
        writer.write(step, {{"loss": 2.5, "grad_norm": 0.25}})
    except OSError as error:
        print(step, error.strerror)
        break
writer.close()
"""


def fill(writer: str) -> int:
    """The number of records that a file of at most 1000 bytes has taken whole."""
    result = subprocess.run(
        [sys.executable, "-c", LIMITED.format(writer=writer)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0 and result.stderr == "", result.stderr
    step, reason = result.stdout.split(maxsplit=1)
    assert reason.strip() == "File too large"
    return int(step) - 1


def test_a_full_disk_raises_and_leaves_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    number = fill(f"JsonlWriter({str(path)!r})")
    assert [record["step"] for record in read(path)] == list(range(1, number + 1))
    assert 900 < path.stat().st_size <= 1000


def test_a_full_disk_raises_and_leaves_whole_events(tmp_path):
    number = fill(f"TensorBoardWriter({str(tmp_path)!r})")
    found = {step for _, step in scalars(tmp_path)}
    assert found == set(range(1, number + 1))


def test_what_is_to_stay_is_not_rewritten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [1, 2])
    inode = path.stat().st_ino
    write_steps(path, [3], resume_from=2)
    assert path.stat().st_ino == inode
    assert [record["step"] for record in read(path)] == [1, 2, 3]


def events(folder):
    """The events of all event files in `folder`, in their order."""
    found = []
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            # A record is its length, a checksum of 4 bytes, the event and a checksum again.
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[12 + length + 4 :]
    return found


def scalars(folder):
    """{(tag, step): value} of the event files in `folder`."""
    return {
        (value.tag, event.step): value.simple_value
        for event in events(folder)
        for value in event.summary.value
    }


def test_tensorboard_is_told_what_a_resumed_run_replaces(tmp_path):
    for options in ({}, {"resume_from": 3}):
        writer = TensorBoardWriter(tmp_path, **options)
        writer.write(4, {"loss": 2.5})
        writer.close()
    starts = [event for event in events(tmp_path) if event.HasField("session_log")]
    # SessionLog.START with a step: TensorBoard drops what came before at this step and later.
    assert [(event.session_log.status, event.step) for event in starts] == [(1, 4)]


def test_tensorboard_holds_every_value(tmp_path):
    writer = TensorBoardWriter(tmp_path / "new")
    writer.write(1, {"loss": 2.5, "grad_norm": 0.25})
    writer.write(2, {"loss": 1.5})
    writer.close()
    expected = {("loss", 1): 2.5, ("grad_norm", 1): 0.25, ("loss", 2): 1.5}
    found = scalars(tmp_path / "new")
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[key] for key in expected], list(expected.values()))
