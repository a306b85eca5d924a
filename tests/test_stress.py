"""Many steps of layouts with many collectives in flight: none may hang."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stress_layouts import LAYOUTS, stress

from hybrid_jax.runtime.cpu import cpu_environment

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


CUBE = {"stage": 2, "data": 2, "model": 2, "microbatches": 4}
INTERLEAVED_CUBE = {**CUBE, "schedule": "interleaved", "chunks": 2, "zero": 3}
# Its steps are the shortest: the host runs ahead of it until its launches have to wait, too.
ROW = {"stage": 1, "data": 1, "model": 8, "microbatches": 4, "zero": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "steps", "processes"),
    [(INTERLEAVED_CUBE, 500, 1), (ROW, 1000, 1), (INTERLEAVED_CUBE, 40, 2)],
)
def test_no_layout_hangs(layout, steps, processes):
    """The short form of `stress_layouts.py`."""
    last = stress(LAYOUTS.index(layout), steps, processes)
    assert last.startswith(f"finished {steps} steps")
    assert float(last.split()[-1]) < 4.0  # from log(64): it learns the alphabet


@pytest.mark.slow
def test_zero_3_does_not_confuse_its_gathers():
    rows = run(ZERO_3)
    assert [row[:2] for row in rows] == [["finished", "10"]] * 4
    losses = [float(row[2]) for row in rows]
    assert max(losses) - min(losses) < 1e-4 < 5 - max(losses)
