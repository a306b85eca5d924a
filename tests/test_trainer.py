"""The loop: what hooks see and when, resuming from a state, and stopping on a signal."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.train.state import TrainState
from hybrid_jax.trainer import EveryN, Trainer


class Counting:
    """A train step that adds the batch to the parameter."""

    def step(self, state, batch):
        params = state.params + batch["tokens"]
        return TrainState(state.step + 1, params, ()), {"loss": 2.0 * params}


class Numbers:
    """Batch n is the number n."""

    def __init__(self, at=None, do=None):
        self.at, self.do = at, do

    def batch(self, step):
        if step == self.at:
            self.do()
        return {"tokens": np.float32(step)}


class Recorder:
    def __init__(self):
        self.steps, self.ended = [], []

    def on_step(self, step, state, metrics):
        self.steps.append((step, float(state.params), float(metrics["loss"])))

    def on_end(self, state):
        self.ended.append(int(state.step))


def start(step=0):
    return TrainState(jnp.int32(step), jnp.float32(0), ())


def test_hooks_see_every_update_and_the_end():
    recorder = Recorder()
    state = Trainer(Counting(), Numbers(), steps=4, hooks=[recorder]).fit(start())
    assert recorder.steps == [(1, 0, 0), (2, 1, 2), (3, 3, 6), (4, 6, 12)]
    assert recorder.ended == [4]
    assert int(state.step) == 4


def test_a_run_goes_on_from_its_state():
    recorder = Recorder()
    state = Trainer(Counting(), Numbers(), steps=5, hooks=[recorder]).fit(start(step=3))
    assert [step for step, *_ in recorder.steps] == [4, 5]
    assert float(state.params) == 3 + 4


def test_a_finished_run_makes_no_step():
    recorder = Recorder()
    Trainer(Counting(), Numbers(), steps=3, hooks=[recorder]).fit(start(step=3))
    assert (recorder.steps, recorder.ended) == ([], [3])


def test_a_hook_may_see_the_start():
    class Starting(Recorder):
        started = None

        def on_start(self, state):
            assert self.steps == []
            self.started = int(state.step)

    hooks = [Starting(), EveryN(2, inner := Starting()), EveryN(2, Recorder())]
    Trainer(Counting(), Numbers(), steps=5, hooks=hooks).fit(start(step=3))
    assert (hooks[0].started, inner.started) == (3, 3)


def test_the_grace_time_covers_the_hooks():
    """In a process of its own, which it ends."""
    code = """
import os, signal, sys, time
sys.path.insert(0, "tests")
from test_trainer import *

class Saving(Recorder):
    def on_end(self, state):
        time.sleep(60)

batches = Numbers(at=2, do=lambda: os.kill(os.getpid(), signal.SIGTERM))
Trainer(Counting(), batches, steps=9, hooks=[Saving()], grace_seconds=0.5).fit(start())
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 75, result.stderr
    assert "in on_end" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: the run did not end within 0.5 s")


def test_every_n():
    recorder = Recorder()
    Trainer(Counting(), Numbers(), steps=7, hooks=[EveryN(3, recorder)]).fit(start())
    assert [step for step, *_ in recorder.steps] == [3, 6]
    assert recorder.ended == [7]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step(number, capfd):
    before = signal.getsignal(number)
    batches = Numbers(at=2, do=lambda: os.kill(os.getpid(), number))
    recorder = Recorder()
    state = Trainer(Counting(), batches, steps=100, hooks=[recorder]).fit(start())
    assert int(state.step) == 3
    assert recorder.ended == [3]
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err
    assert signal.getsignal(number) is before


def test_a_second_signal_is_not_caught():
    def interrupt_twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Trainer(Counting(), Numbers(at=2, do=interrupt_twice), steps=100).fit(start())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_thread_may_train():
    states = []
    trainer = Trainer(Counting(), Numbers(), steps=2)
    thread = threading.Thread(target=lambda: states.append(trainer.fit(start())))
    thread.start()
    thread.join()
    assert int(states[0].step) == 2


def test_the_host_is_at_most_two_steps_ahead():
    """When a step is dispatched, the one before the last has been waited for."""
    waited = []

    class Tracked:
        def __init__(self, step):
            self.step = step

        def block_until_ready(self):
            waited.append(self.step)
            return self

    class Dispatching:
        def step(self, state, batch):
            step = int(state.step) + 1
            assert step <= 2 or step - 2 in waited
            assert step - 1 not in waited
            return TrainState(jnp.int32(step), (), ()), {"loss": Tracked(step)}

    Trainer(Dispatching(), Numbers(), steps=5).fit(start())
    assert waited == [1, 2, 3, 4]
