"""Metric files: every JSON line is on disk when written; TensorBoard events hold every value."""

import json
import struct

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


def scalars(folder):
    """{(tag, step): value} of the one event file in `folder`."""
    (path,) = folder.glob("events.*")
    content, found = path.read_bytes(), {}
    while content:
        # A record is its length, a checksum of 4 bytes, the event and a checksum again.
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        content = content[12 + length + 4 :]
    return found


def test_tensorboard_holds_every_value(tmp_path):
    writer = TensorBoardWriter(tmp_path / "new")
    writer.write(1, {"loss": 2.5, "grad_norm": 0.25})
    writer.write(2, {"loss": 1.5})
    writer.close()
    expected = {("loss", 1): 2.5, ("grad_norm", 1): 0.25, ("loss", 2): 1.5}
    found = scalars(tmp_path / "new")
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[key] for key in expected], list(expected.values()))
