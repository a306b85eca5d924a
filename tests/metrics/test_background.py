"""A writer in the background: slow, stuck or broken, it never delays or breaks a step."""

import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.metrics.background import Background
from hybrid_jax.metrics.log import Log


class Stuck:
    """Takes no record before it is released."""

    name, essential = "the file server", True

    def __init__(self):
        self.released, self.steps, self.closed = threading.Event(), [], False

    def write(self, step, values):
        self.released.wait(60)
        self.steps.append(step)

    def close(self):
        self.closed = True


class Broken:
    """Has a disk with room for two records."""

    name, essential = "the file", True

    def __init__(self):
        self.steps = []

    def write(self, step, values):
        if len(self.steps) == 2:
            raise OSError(28, "No space left on device")
        self.steps.append(step)

    def close(self):
        raise OSError(5, "Input/output error")


class Network(Broken):
    name, essential = "the service", False


@pytest.fixture
def stuck():
    writer = Stuck()
    yield writer
    writer.released.set()


def finish(background, seconds=30):
    background.end()
    background.join(seconds)
    assert not background._thread.is_alive()


def test_all_records_come_in_their_order_as_they_were():
    writer = Stuck()
    writer.released.set()
    background = Background(writer)
    for step in range(500):
        background.write(step, {})
    background.flush()
    assert writer.steps == list(range(500))
    finish(background)
    assert writer.closed


def test_a_stuck_writer_delays_no_step(stuck):
    fast = Stuck()
    fast.released.set()
    log = Log([stuck, fast], every=1, tokens_per_step=1)
    begin = time.perf_counter()
    for step in range(1, 201):
        log.on_step(step, None, {"loss": np.float32(step)})
    assert time.perf_counter() - begin < 5  # 200 steps; the writer waits a minute for each
    for background in log._backgrounds:
        background.flush_seconds = 0.2
    log.flush()
    assert fast.steps == list(range(1, 201))
    assert stuck.steps == []


def test_a_stuck_writer_is_waited_for_once_and_its_records_are_dropped(stuck, capfd):
    background = Background(stuck, capacity=5, flush_seconds=0.2)
    begin = time.perf_counter()
    for step in range(10):
        background.write(step, {})
        background.flush()
    assert time.perf_counter() - begin < 2
    err = capfd.readouterr().err
    assert err.count("warning: the file server has not taken its records within 0.2 s") == 1
    assert err.count("warning: the file server takes no records: 5 are waiting") == 1
    background.end()
    background.join(0.1)
    assert "records are missing in the file server" in capfd.readouterr().err
    stuck.released.set()
    finish(background)
    assert stuck.steps == list(range(len(stuck.steps))) and len(stuck.steps) >= 5
    assert stuck.closed


def test_an_essential_writer_that_breaks_is_a_failure(capfd):
    log = Log([writer := Broken()], every=1, tokens_per_step=1)
    with log:
        for step in range(1, 6):
            log.on_step(step, None, {"loss": jnp.float32(0)})
        log.on_end(None)
        assert log.failure == "the file cannot be written to: No space left on device"
    assert writer.steps == [1, 2]
    assert capfd.readouterr().err == ""  # whoever looks at the failure says it


def test_any_other_writer_that_breaks_is_a_warning(capfd):
    with Log([Network()], every=1, tokens_per_step=1) as log:
        for step in range(1, 6):
            log.on_step(step, None, {"loss": jnp.float32(0)})
        assert log.failure is None
    message = "warning: the service cannot be written to: No space left on device; no more metrics"
    assert capfd.readouterr().err.count(message) == 1


def test_a_writer_that_cannot_be_closed_is_told(capfd):
    finish(Background(Broken()))
    assert "warning: the file cannot be written to: Input/output error." in capfd.readouterr().err
