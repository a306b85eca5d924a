"""Reads the checkpoints of a run that saves every step: `python tests/checkpoint/poll_live_run.py`.

    python tests/checkpoint/poll_live_run.py [--polls 1000]

Starts `hybrid-jax train`, reads its newest checkpoint again and again from this process, in every
way that there is, and then stops the run with SIGTERM. The run must end with status 0, have logged
every step, and have exactly the checkpoints that its config keeps; no reading may warn or fail.
Prints what was read, and what this process holds at its end beyond its beginning.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import jax
import numpy as np

import hybrid_jax as hj
from hybrid_jax.config.load import load_config
from hybrid_jax.run import build_train_step

CONFIG = """
cpu_devices: 2
model: {preset: nano, num_layers: 1, embed_dim: 16, num_heads: 2, mlp_dim: 32}
strategy: {data: 2, precision: f32}
data: {global_batch: 2, seq_len: 16}
train: {steps: 20000, log_every: 1, eval_every: 20, eval_batches: 1, sample_tokens: 0}
checkpoint: {every: 1, keep_last: 2, keep_best: 1}
"""


def main(polls: int) -> dict[str, float]:
    """Returns what happened, by name; raises AssertionError for what must not."""
    with tempfile.TemporaryDirectory() as folder:
        config, output = Path(folder, "run.yaml"), Path(folder, "run")
        config.write_text(CONFIG)
        with start(config, output) as run:
            try:
                found = poll(run, config, output, polls)
                run.send_signal(signal.SIGTERM)
                _, errors = run.communicate(timeout=120)
            finally:
                run.kill()
        assert run.returncode == 0, errors
        assert "Warning" not in errors, errors
        steps = check_steps(output)
        return {"polls": polls, "steps of the run": steps, **found}


def start(config: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "hybrid_jax", "train", str(config)]
    return subprocess.Popen(
        [*command, f"train.output_dir={output}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def poll(run: subprocess.Popen, config: Path, output: Path, polls: int) -> dict[str, float]:
    """Reads so often, by one object that lives as long as the run and by others that do not."""
    # Onto another layout, if this process has other devices than the run.
    devices = jax.device_count()
    sizes = [f"{name}={devices}" for name in ("cpu_devices", "strategy.data", "data.global_batch")]
    train = build_train_step(load_config(config, [*sizes, f"train.output_dir={output}"]))
    folder = output / "checkpoints"
    while run.poll() is None and not hj.Checkpointer(folder).steps:
        time.sleep(0.05)
    watcher, newest, different, before, best = hj.Checkpointer(folder), 0, 0, {}, 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(polls):
            if number == min(20, polls // 2):
                before = held()  # compiled, and started, is everything
            assert run.poll() is None, "the run ended before it was read often enough"
            step = read(number, watcher, hj.Checkpointer(folder), train)
            assert step >= newest, f"step {step} after step {newest}"
            different += step > newest
            newest = step
            best += watcher.best_step is not None
    growth = {f"more {name}": held()[name] - value for name, value in before.items()}
    return {"steps read": different, "polls with a best step": best, **growth}


def read(number: int, watcher: hj.Checkpointer, fresh: hj.Checkpointer, train) -> int:
    """Reads the newest step in one of the ways; returns its number."""
    if number % 4 == 0:
        return int(fresh.restore(train).step)
    if number % 4 == 1:
        return int(watcher.restore(train).step)
    step = watcher.manifest().step
    params = (watcher if number % 4 == 2 else fresh).restore_params()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    return step


def held() -> dict[str, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "MB": round(pages * os.sysconf("SC_PAGESIZE") / 2**20),
        "open files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
    }


def check_steps(output: Path) -> int:
    """Every step is logged once, and the last two and the best are kept; returns how many."""
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == list(range(1, len(steps) + 1)), steps
    losses = {r["step"]: r["eval_loss"] for r in records if "eval_loss" in r}
    best = [min(losses, key=lambda step: (losses[step], -step))] if losses else []
    kept = sorted({*steps[-2:], *best})
    assert hj.Checkpointer(output / "checkpoints").steps == kept
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == sorted(
        map(str, kept)
    )
    return len(steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--polls", type=int, default=1000)
    hj.force_cpu_devices(2)
    print(main(**vars(parser.parse_args())))
