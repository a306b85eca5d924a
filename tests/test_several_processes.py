"""`hybrid-jax train` as two processes: one prints and writes; a signal to the other stops both."""

import json
import signal
import socket
import time

import pytest
from processes import finish_processes, start_processes

from hybrid_jax.cli import main

CONFIG = """
cpu_devices: 8
model: {preset: nano, num_layers: 2, embed_dim: 32, num_heads: 2, mlp_dim: 64}
strategy: {data: 2, stage: 2, model: 2, microbatches: 2, precision: f32}
data: {global_batch: 8, seq_len: 32}
train: {steps: 100000, log_every: 1, eval_batches: 1, sample_tokens: 4, stall_seconds: 60}
checkpoint: {every: 50}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"{CONFIG}\n")
    return [str(path), f"train.output_dir={tmp_path / 'out'}"]


def records(tmp_path):
    path = tmp_path / "out" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path, config, capsys):
    processes = start_processes(["-m", "hybrid_jax", "train", *config])
    end = time.monotonic() + 120
    while len(records(tmp_path)) < 5 and time.monotonic() < end:
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    first, second = finish_processes(processes, 60)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "SIGTERM" in second.stderr
    assert "SIGTERM" not in first.stderr

    # Both were at the same step, or the save would have hung: it is there, from both.
    step = records(tmp_path)[-1]["step"]
    assert f"stopped after {step} of 100000 steps" in first.stdout
    assert "step" not in second.stdout
    saved = tmp_path / "out" / "checkpoints" / str(step)
    assert (saved / "verified.0-of-2.json").exists()
    assert (saved / "verified.1-of-2.json").exists()
    assert [record["step"] for record in records(tmp_path)] == list(range(1, step + 1))

    # One process with the same devices resumes, to the end.
    assert main(["train", *config, f"train.steps={step + 2}"]) == 0
    assert f"resuming from step {step}" in capsys.readouterr().out
    assert records(tmp_path)[-1]["step"] == step + 2


@pytest.mark.slow
def test_two_processes_end_with_a_summary(tmp_path, config):
    arguments = ["-m", "hybrid_jax", "train", *config, "train.steps=3"]
    first, second = finish_processes(start_processes(arguments))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "held-out loss of model" in first.stdout
    assert "sample:" in first.stdout
    assert "held-out" not in second.stdout
    assert len(list((tmp_path / "out").glob("events.*"))) == 1
    steps = [record["step"] for record in records(tmp_path) if "loss" in record]
    assert steps == [1, 2, 3]


@pytest.mark.slow
def test_processes_that_were_started_differently_are_refused(tmp_path, config):
    command = ["-m", "hybrid_jax", "train", *config]
    (tmp_path / "same.txt").write_text("abc\n" * 2000)
    (tmp_path / "other.txt").write_text("abd\n" * 2000)
    text = f"data.source={tmp_path}"
    cases = [
        ("optimizer.learning_rate=0.001", "optimizer.learning_rate=0.1", ", process 0 has 0.001"),
        ("train.steps=20", "train.steps=12", ", process 0 has 20"),
        (f"{text}/same.txt", f"{text}/other.txt", "the data=seed=0"),
    ]
    for first, second, words in cases:
        for result in finish_processes(start_processes(command, own=[[first], [second]])):
            line = result.stderr.splitlines()[-1]
            assert result.returncode == 2
            assert result.stderr.count("error: ") == 1
            assert line.startswith("error: process 1 has ")
            assert words in line
            assert "data" in words or second in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_text_that_one_host_lacks_ends_all(tmp_path, config):
    (tmp_path / "text.txt").write_text("abc\n" * 2000)
    own = [[f"data.source={tmp_path}/{name}.txt"] for name in ("text", "absent")]
    processes = start_processes(["-m", "hybrid_jax", "train", *config], own=own)
    first, second = finish_processes(processes)
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    assert "absent.txt" in second.stderr.splitlines()[-1]
    assert first.stderr.splitlines()[-1].startswith("error: process 1 (host ")
    assert "absent.txt" in first.stderr.splitlines()[-1]


def test_a_process_that_is_missing_and_a_port_that_is_busy(config):
    command = ["-m", "hybrid_jax", "train", *config, "train.join_seconds=6"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        processes = [
            *start_processes(command, only=[0]),
            *start_processes(command, only=[0], port=port),
        ]
        missing, busy = finish_processes(processes)
    assert busy.returncode == 2
    assert busy.stderr.count("\n") == 1
    assert f"port {port} of the coordinator address 127.0.0.1:{port} is in use" in busy.stderr
    assert missing.returncode == 75
    notice, last = missing.stderr.splitlines()
    assert notice == "waiting for process 1 (1 of 2) since 5 s"
    assert last.startswith("error: process 1 (1 of 2) did not join within 6 s (train.join_seconds)")
