"""`hybrid-jax train` as two processes: one tells and writes; a signal to the other stops both."""

import json
import signal
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

    # One process with the same devices goes on, to the end.
    assert main(["train", *config, f"train.steps={step + 2}"]) == 0
    assert f"going on from step {step}" in capsys.readouterr().out
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
