"""However a run ends, `trainer.state` is the last whole state, and it is saved."""

import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import decoder, plain_batch

from hybrid_jax import Checkpointer, RunError, Strategy, Trainer, UserError, make_mesh
from hybrid_jax.hooks import Save
from hybrid_jax.train.step import make_train_step
from hybrid_jax.trainer import EveryN


class Same:
    """The same batch again and again, or what goes wrong at a step."""

    def __init__(self, at=None, error=None):
        self.at, self.error = at, error

    def batch(self, step):
        if step == self.at:
            raise self.error
        return plain_batch(8)


class Raising:
    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_step(self, step, state, metrics):
        if step == self.step:
            raise self.error

    def on_end(self, state):
        pass


@pytest.fixture(scope="module")
def train():
    strategy = Strategy(data=2, precision="f32")
    mesh = make_mesh(strategy, jax.devices()[:2])
    return make_train_step(decoder(num_layers=1), optax.adam(1e-2), strategy, mesh)


def trained(train, steps):
    return Trainer(train, Same(), steps=steps).fit(train.init(jax.random.key(0)))


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((found, expected)))


def test_a_hook_that_raises_leaves_the_state(train):
    """It was donated to a step whose result nobody kept."""
    trainer = Trainer(train, Same(), steps=5, hooks=[Raising(3, ValueError("mine"))])
    with pytest.raises(ValueError, match="mine"):
        trainer.fit(train.init(jax.random.key(0)))
    assert_same(trainer.state, trained(train, 3))
    trainer.hooks = ()
    assert_same(trainer.fit(trainer.state), trained(train, 5))


@pytest.mark.parametrize(
    ("error", "saves"), [(ValueError("mine"), True), (RunError("diverged"), False)]
)
@pytest.mark.parametrize("after_errors", [True, False])
def test_an_exception_saves_the_state_as_it_is_asked_to(
    train, tmp_path, error, saves, after_errors
):
    for batches, hooks in ((Same(3, error), []), (Same(), [Raising(3, error)])):
        folder = tmp_path / str(len(hooks))
        with pytest.raises(type(error), match=str(error)), Checkpointer(folder) as checkpointer:
            save = Save(checkpointer, train, after_errors=after_errors)
            trainer = Trainer(train, batches, steps=5, hooks=[EveryN(100, save), *hooks])
            trainer.fit(train.init(jax.random.key(0)))
        steps = [3] if saves and after_errors else []
        assert Checkpointer(folder).steps == steps
        if steps:
            assert_same(Checkpointer(folder).restore(train), trained(train, 3))


def test_what_fails_while_saving_hides_nothing(train):
    class Failing(Raising):
        def on_error(self, state, error):
            raise OSError("disk full")

    trainer = Trainer(train, Same(), steps=5, hooks=[Failing(2, ValueError("first"))])
    with pytest.raises(ValueError, match="first") as error:
        trainer.fit(train.init(jax.random.key(0)))
    assert error.value.__notes__ == ["Failing.on_error failed too: disk full"]


def test_a_donated_state_is_refused_at_the_start(train):
    state = train.init(jax.random.key(0))
    train.step(state, plain_batch(8))
    with pytest.raises(UserError, match="is gone"):
        Trainer(train, Same(), steps=5).fit(state)


def test_ctrl_c_twice_at_any_instant_leaves_a_whole_state(train):
    """Whatever the interrupt hits, the old state or the new one is there, never neither."""
    rng = np.random.default_rng(0)
    state, interrupted = train.init(jax.random.key(0)), 0
    for _ in range(40):
        begin, delay, pause = int(state.step), rng.uniform(0.01, 0.1), rng.uniform(0, 0.004)
        trainer = Trainer(train, Same(), steps=begin + 10_000)

        def interrupt(delay=delay, pause=pause):
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        try:
            thread.start()
            trainer.fit(state)
            thread.join()
        except KeyboardInterrupt:
            interrupted += 1
        thread.join()
        state = trainer.state
        train.check_state(state)
        assert jnp.isfinite(train.evaluate(state, plain_batch(8))["loss"])
    assert interrupted > 10
