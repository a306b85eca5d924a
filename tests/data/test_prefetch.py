"""Prefetched batches are the batches, whatever is asked for; the thread never hangs or stays."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.data.prefetch import Prefetch


class Counting:
    """The batch of a step is the step; remembers which were made, and may be slow or fail."""

    def __init__(self, seconds: float = 0.0, broken: tuple[int, ...] = ()) -> None:
        self.seconds = seconds
        self.broken = broken
        self.made: list[int] = []

    def batch(self, step: int) -> dict[str, np.ndarray]:
        time.sleep(self.seconds)
        self.made.append(step)
        if step in self.broken:
            raise OSError(f"step {step} is broken")
        return {"tokens": np.array(step)}


def value(batches: Prefetch, step: int) -> int:
    return int(batches.batch(step)["tokens"])


@pytest.fixture(autouse=True)
def no_thread_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@settings(deadline=None)
@given(steps=st.lists(st.integers(0, 30), max_size=60), depth=st.integers(1, 4))
def test_any_steps_in_any_order(steps, depth):
    with Prefetch(Counting(), depth) as batches:
        assert [value(batches, step) for step in steps] == steps


def test_steps_in_order_are_made_once_and_ahead():
    counting = Counting()
    with Prefetch(counting, depth=3) as batches:
        assert [value(batches, step) for step in range(5, 25)] == list(range(5, 25))
    # What was ahead at the end may have been given up; nothing was made twice or left out.
    assert counting.made == list(range(5, 5 + len(counting.made)))
    assert 20 <= len(counting.made) <= 23


def test_batches_are_ready_when_the_loop_is_slower_than_they_are():
    with Prefetch(Counting(seconds=0.05)) as batches:
        value(batches, 0)
        assert batches.wait_seconds >= 0.05
        for step in range(1, 6):
            time.sleep(0.1)
            value(batches, step)
        # Six batches took 0.3 s to make; the loop waited for the first one.
        assert batches.wait_seconds < 0.15


def test_waiting_is_measured_when_batches_are_slower_than_the_loop():
    with Prefetch(Counting(seconds=0.05)) as batches:
        for step in range(6):
            value(batches, step)
        assert batches.wait_seconds >= 0.3


def test_an_error_is_raised_for_its_step_only_and_again():
    counting = Counting(broken=(3,))
    with Prefetch(counting) as batches:
        assert [value(batches, step) for step in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(OSError, match="step 3 is broken"):
                batches.batch(3)
        assert [value(batches, step) for step in (4, 5, 2)] == [4, 5, 2]
        counting.broken = ()
        assert value(batches, 3) == 3


def test_closing_while_full_and_busy_ends_the_thread():
    for seconds in (0.0, 0.02):
        for steps in range(4):
            with Prefetch(Counting(seconds), depth=4) as batches:
                for step in range(steps):
                    value(batches, step)
    unused = Prefetch(Counting())
    unused.close()
    unused.close()


def test_a_failing_loop_closes_it():
    with pytest.raises(RuntimeError, match="the loop"), Prefetch(Counting(), depth=4) as batches:
        value(batches, 0)
        raise RuntimeError("the loop failed")


def test_a_thousand_seeks_with_errors_among_them():
    rng = np.random.default_rng(0)
    broken = tuple(range(0, 100, 7))
    with Prefetch(Counting(broken=broken), depth=4) as batches:
        for start in rng.integers(0, 100, 1000):
            for step in range(start, start + int(rng.integers(1, 6))):
                if step in broken:
                    with pytest.raises(OSError, match=f"step {step} is"):
                        batches.batch(step)
                else:
                    assert value(batches, step) == step


def test_it_ends_with_its_last_reference():
    batches = Prefetch(Counting())
    value(batches, 0)
    del batches
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("prefetch") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
