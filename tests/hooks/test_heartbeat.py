"""The heartbeat notifies the watchdog of every step and of the end."""

import jax.numpy as jnp

from hybrid_jax.hooks import Heartbeat
from hybrid_jax.runtime.watchdog import Watchdog
from hybrid_jax.train.state import TrainState
from hybrid_jax.trainer import Trainer


class Counting:
    def step(self, state, batch):
        return TrainState(state.step + 1, (), ()), {"loss": jnp.float32(0)}


class Nothing:
    def batch(self, step):
        return {}


class Recording(Watchdog):
    """A watchdog that keeps what it is notified of."""

    steps: list[int]

    def beat(self, step):
        self.steps = [*getattr(self, "steps", []), step]
        super().beat(step)


def test_every_step_and_the_end_are_told():
    with Recording(60) as watchdog:
        start = TrainState(jnp.int32(2), (), ())
        Trainer(Counting(), Nothing(), steps=4, hooks=[Heartbeat(watchdog)]).fit(start)
    assert watchdog.steps == [3, 4, 4]
