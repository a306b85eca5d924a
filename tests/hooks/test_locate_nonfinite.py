"""The hook that names what was not finite in skipped steps."""

import jax
import numpy as np
import optax
from tiny import decoder, plain_batch

from hybrid_jax import Strategy, Trainer, make_mesh, make_train_step
from hybrid_jax.hooks import LocateNonfinite


class SomeBad:
    """Batches of which some make the loss infinite: for one example, by its weight."""

    def __init__(self, bad):
        self.bad = bad

    def batch(self, step):
        weights = np.ones((4, 8), np.float32)
        if step + 1 in self.bad:
            weights[3, 2] = np.inf
        return {**plain_batch(4, seed=step), "weights": weights}


def test_skipped_steps_are_reported_once_each():
    strategy = Strategy(data=2, precision="f32")
    mesh = make_mesh(strategy, jax.devices()[:2])
    train = make_train_step(decoder(), optax.sgd(0.1), strategy, mesh, check_values=False)
    lines, batches = [], SomeBad({2, 3, 5})
    hook = LocateNonfinite(train, batches, lines.append)
    Trainer(train, batches, steps=6, hooks=[hook]).fit(train.init(jax.random.key(0)))
    bad = "first not finite: batch['weights'] for example 3 (microbatch 0); loss"
    assert [line.partition("; loss")[0] + "; loss" for line in lines] == [
        f"step {step} was skipped: {bad}" for step in (2, 3, 5)
    ]


def test_a_spike_is_called_one():
    strategy = Strategy(precision="f32")
    mesh = make_mesh(strategy, jax.devices()[:1])
    train = make_train_step(decoder(), optax.sgd(0.1), strategy, mesh)
    lines = []
    hook = LocateNonfinite(train, SomeBad(()), lines.append)
    state = train.init(jax.random.key(0))
    hook.on_step(1, state, {"loss": np.float32(9), "skipped_in_a_row": np.int32(1)})
    assert lines == ["step 1 was skipped: every array is finite, and loss 9 a spike"]
