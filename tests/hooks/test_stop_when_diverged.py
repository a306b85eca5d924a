"""A run whose updates are all skipped ends with one line that says what is left and what to do."""

import jax
import numpy as np
import optax
import pytest
from tiny import decoder, plain_batch

from hybrid_jax import Strategy, make_mesh, make_train_step
from hybrid_jax.errors import RunError
from hybrid_jax.hooks import StopWhenDiverged
from hybrid_jax.trainer import Trainer


class SomeBad:
    """Batches of which those of the steps `bad` (from 1) have a weight that is not a number."""

    def __init__(self, bad):
        self.bad = bad

    def batch(self, step):
        weights = np.full((8, 8), np.nan if step + 1 in self.bad else 1, np.float32)
        return {**plain_batch(seed=step), "weights": weights}


class Steps:
    def __init__(self):
        self.seen = []

    def on_step(self, step, state, metrics):
        self.seen.append(step)

    def on_end(self, state):
        pass


@pytest.fixture(scope="module")
def train():
    strategy = Strategy(precision="f32")
    mesh = make_mesh(strategy, jax.devices()[:1])
    # Bad weights stand here for all that makes a loss bad: the door would refuse them.
    return make_train_step(decoder(), optax.sgd(0.1), strategy, mesh, check_values=False)


def fit(train, bad, steps=8, **options):
    seen = Steps()
    trainer = Trainer(
        train, SomeBad(bad), steps=steps, hooks=[seen, StopWhenDiverged(3, **options)]
    )
    try:
        return trainer.fit(train.init(jax.random.key(0))), seen.seen
    finally:
        print(seen.seen[-1])


def test_the_run_stops_one_step_late(train, capsys):
    with pytest.raises(RunError) as error:
        fit(train, range(4, 9), last_checkpoint=lambda: "runs/x/checkpoints/3")
    assert str(error.value) == (
        "the run diverged: 3 updates in a row were skipped, the last at step 6 (loss nan, gradient "
        "norm nan); the last good checkpoint is runs/x/checkpoints/3. Lower the learning rate, or "
        "look at the data of steps 4 to 6; train.max_skipped sets how many are too many."
    )
    assert capsys.readouterr().out == "7\n"


def test_the_last_step_counts_too(train):
    with pytest.raises(RunError, match=r"at step 8 .*; no checkpoint was saved\. Lower"):
        fit(train, (6, 7, 8))


def test_fewer_in_a_row_are_lived_through(train):
    state, seen = fit(train, (1, 2, 4, 5, 7, 8))
    assert seen == list(range(1, 9))
    assert int(state.guard.skipped) == 6
