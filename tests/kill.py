"""Kills a run at random instants, in mid-save too, until it ends; its numbers must not change.

    python tests/kill.py [--kills 20] [--seed 0]

Trains a small model twice: once undisturbed, and once killed with SIGKILL and started again with
the same command, as often as asked. Half of the kills hit while a checkpoint is being written. At
the end the digests of all arrays of both final states, parameters, optimizer and counters, and the
records of both runs must be equal. Ends with status 1 if they are not.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 240
CONFIG = f"""
cpu_devices: 2
model: {{preset: nano, num_layers: 2, embed_dim: 32, num_heads: 2, mlp_dim: 64, dropout: 0.1}}
strategy: {{data: 2, precision: f32}}
optimizer: {{learning_rate: 1e-2, warmup_steps: 3}}
data: {{global_batch: 4, seq_len: 32}}
train: {{steps: {STEPS}, log_every: 1, eval_every: 20, eval_batches: 1}}
checkpoint: {{every: 2}}
"""


def main(kills: int, seed: int) -> int:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        straight, killed = Path(folder, "straight"), Path(folder, "killed")
        print("undisturbed run", flush=True)
        finish(straight)
        done = in_save = 0
        while done < kills:
            mid_save = done % 2 == 0
            step = kill_one(killed, chance, mid_save)
            if step is None:
                print(f"the run ended before kill {done + 1}: too few steps for so many kills")
                return 1
            done += 1
            in_save += mid_save
            print(f"kill {done:2} after step {step}{', in mid-save' * mid_save}", flush=True)
        finish(killed)
        found, expected = final(killed), final(straight)
    if found != expected:
        print("DIFFERENT:", [name for name in expected if found.get(name) != expected[name]][:5])
        return 1
    print(f"{done} kills, {in_save} of them in mid-save: bit for bit the undisturbed run")
    return 0


def start(output: Path) -> subprocess.Popen:
    config = output.parent / "run.yaml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "hybrid_jax", "train", str(config)]
    return subprocess.Popen(
        [*command, f"train.output_dir={output}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(output: Path) -> None:
    process = start(output)
    _, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"the run failed with status {process.returncode}:\n{errors[-3000:]}")


def kill_one(output: Path, chance: random.Random, mid_save: bool) -> int | None:
    """Starts the run, kills it at a random instant, and returns the last step that it logged."""
    process = start(output)
    records = output / "metrics.jsonl"
    before = last_step(records)
    # First until it trains, then to a random instant of that, or of a save.
    while process.poll() is None and last_step(records) <= before:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.4))
    while mid_save and process.poll() is None and not saving(output):
        time.sleep(0.0005)
    if mid_save:
        time.sleep(chance.uniform(0, 0.03))
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return last_step(records) if alive else None


def saving(output: Path) -> bool:
    return any(output.glob("checkpoints/*.orbax-checkpoint-tmp*"))


def last_step(records: Path) -> int:
    if not records.exists():
        return 0
    lines = records.read_text().splitlines()
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def final(output: Path) -> dict[str, object]:
    """Digest of every array of the final state, and every loss on the way."""
    content = json.loads((output / f"checkpoints/{STEPS}/manifest/metadata").read_text())
    digests = {name: entry["digest"] for name, entry in content["arrays"].items()}
    losses = {}
    for line in (output / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name in ("loss", "grad_norm", "eval_loss"):
            if name in record:
                losses[f"{name} of step {record['step']}"] = record[name]
    return {**digests, **losses, "records": len(losses)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(**vars(parser.parse_args())))
