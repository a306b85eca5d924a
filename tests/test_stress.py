"""Many steps of the layout with the most collectives in flight: none may hang."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_jax.runtime.cpu import cpu_environment

NUM_STEPS = 500

PROGRAM = f"""
import jax, numpy as np, optax
import hybrid_jax as hj

strategy = hj.Strategy(stage=2, data=2, model=2, microbatches=4, schedule="interleaved", chunks=2)
config = hj.models.preset(
    "nano", vocab_size=64, num_layers=4, embed_dim=16, num_heads=4, mlp_dim=32, max_length=8
)
train = hj.make_train_step(
    hj.models.Decoder(config), optax.adamw(1e-2), strategy, hj.make_mesh(strategy)
)
state = train.init(jax.random.key(0))
tokens = np.random.default_rng(0).integers(0, 64, (8, 8))
batch = {{"tokens": tokens, "targets": (tokens + 1) % 64}}
for step in range({NUM_STEPS}):
    state, metrics = train.step(state, batch)
    if step % 100 == 0:  # else the host runs ahead, as in training
        print("step", step, float(metrics["loss"]), flush=True)
print("finished", int(state.step), float(metrics["loss"]))
"""


# Large enough that XLA:CPU runs what is independent at the same time, as it does not in tests'
# smallest models: the gathers of layers beside those of embedding and head, or of microbatches.
ZERO_3 = """
import jax, numpy as np, optax
import hybrid_jax as hj

tokens = np.random.default_rng(0).integers(0, 256, (16, 64))
batch = {"tokens": tokens, "targets": tokens}
for layout in (
    {"data": 8},
    {"data": 4, "model": 2},
    {"stage": 2, "data": 4, "microbatches": 4},
    {"stage": 2, "data": 4, "microbatches": 2, "schedule": "interleaved", "chunks": 2},
):
    strategy = hj.Strategy(zero=3, precision="f32", **layout)
    model = hj.models.Decoder(hj.models.preset("nano", style="llama"))
    train = hj.make_train_step(model, optax.adamw(1e-3), strategy, hj.make_mesh(strategy))
    state = train.init(jax.random.key(0))
    for step in range(10):
        state, metrics = train.step(state, batch)
        loss = float(train.evaluate(state, batch)["loss"])
    print("finished", int(state.step), loss)
"""


def run(program: str) -> list[list[str]]:
    """What a program on eight virtual devices of its own prints, in words."""
    environment = dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env={**environment, **cpu_environment(8, environment)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_the_interleaved_cube_does_not_hang():
    word, steps, loss = run(PROGRAM)[-1]
    assert (word, int(steps)) == ("finished", NUM_STEPS)
    assert float(loss) < 1.0  # the target is the next token of the alphabet


@pytest.mark.slow
def test_zero_3_does_not_confuse_its_gathers():
    rows = run(ZERO_3)
    assert [row[:2] for row in rows] == [["finished", "10"]] * 4
    losses = [float(row[2]) for row in rows]
    assert max(losses) - min(losses) < 1e-4 < 5 - max(losses)
