"""A run that is saved and resumed has the numbers of one that was never interrupted."""

import jax
import numpy as np
import optax
import pytest
from tiny import decoder

from hybrid_jax import Checkpointer, Strategy, Trainer, make_mesh, make_train_step
from hybrid_jax.data.batches import Batches
from hybrid_jax.data.source import TokenSource

STEPS = 60
STRAIGHT = Strategy(stage=2, data=2, model=2, microbatches=2, precision="f32")


def make_train(strategy):
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 5, STEPS)
    return make_train_step(
        decoder(dropout=0.1), optax.adamw(schedule), strategy, mesh, clip_norm=1.0, seed=3
    )


def batches():
    """Documents of random lengths, packed: which epoch, row and segment depend on the step."""
    rng = np.random.default_rng(0)
    starts = np.unique(np.concatenate([[0], rng.integers(1, 2000, 150)]))
    source = TokenSource("random", rng.integers(0, 64, 2000), starts, 64, 2000)
    return Batches(source, global_batch=8, seq_len=8, seed=1)


class Losses:
    def __init__(self):
        self.seen = []

    def on_step(self, step, state, metrics):
        self.seen.append(float(metrics["loss"]))

    def on_end(self, state):
        pass


def run(train, folder, until, state=None):
    """Goes on from the newest checkpoint in `folder` up to step `until`, and saves there."""
    losses = Losses()
    with Checkpointer(folder) as checkpointer:
        state = checkpointer.restore(train) if checkpointer.steps else train.init(jax.random.key(0))
        state = Trainer(train, batches(), steps=until, hooks=[losses]).fit(state)
        checkpointer.save(train, state)
    return jax.device_get(train.canonical_state(state)), losses.seen


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return run(make_train(STRAIGHT), tmp_path_factory.mktemp("straight"), STEPS)


def test_the_same_layout_goes_on_bit_for_bit(tmp_path, straight):
    losses = []
    for until in (30, STEPS):
        # A new train step each time, as in a new process.
        state, seen = run(make_train(STRAIGHT), tmp_path, until)
        losses += seen
    assert losses == straight[1]
    jax.tree.map(np.testing.assert_array_equal, state, straight[0])


@pytest.mark.slow
def test_other_layouts_go_on_within_rounding(tmp_path, straight):
    layouts = [
        STRAIGHT,
        Strategy(data=8, zero=3, precision="f32"),
        Strategy(precision="f32", microbatches=2),
        Strategy(
            stage=4,
            model=2,
            microbatches=4,
            precision="f32",
            remat="none",
        ),
        Strategy(
            stage=2,
            data=4,
            microbatches=2,
            schedule="interleaved",
            chunks=2,
            precision="f32",
        ),
    ]
    losses = []
    for number, strategy in enumerate(layouts, start=1):
        state, seen = run(make_train(strategy), tmp_path, number * STEPS // len(layouts))
        losses += seen
    np.testing.assert_allclose(losses, straight[1], rtol=5e-6)
    # Adam divides by the root of the second moment: rounding of a gradient near zero grows in it.
    for found, expected in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(straight[0].params), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert (int(state.step), int(state.guard.skipped)) == (STEPS, 0)
