"""What fails beside the steps ends the run at the next one, in one line."""

from dataclasses import dataclass

import jax.numpy as jnp
import pytest

from hybrid_jax.errors import RunError
from hybrid_jax.hooks import StopOnFailure
from hybrid_jax.metrics.log import Log
from hybrid_jax.train.state import TrainState


@dataclass
class Part:
    failure: str | None = None


class Failing:
    name, essential = "the file", True

    def write(self, step, values):
        raise OSError(28, "No space left on device")

    def close(self):
        pass


STATE = TrainState(jnp.int32(9), (), ())


def make(parts, writers=()):
    log = Log(writers, every=1, tokens_per_step=1)
    return log, StopOnFailure(log, parts, lambda: "the last good checkpoint is step 8 in runs")


def test_a_failure_ends_the_run_at_the_next_step():
    parts = [Part(), Part()]
    _, hook = make(parts)
    hook.on_step(8, STATE, {})
    parts[1].failure = "the trace in runs/profile cannot be written: No space left on device"
    expected = (
        "the trace in runs/profile cannot be written: No space left on device; the run ends after "
        "step 9, and the last good checkpoint is step 8 in runs."
    )
    with pytest.raises(RunError) as raised:
        hook.on_step(9, STATE, {})
    assert str(raised.value) == expected


def test_the_last_record_of_the_log_counts():
    log, hook = make([], [Failing()])
    log.write(9, {"eval_loss": 2.5})
    with pytest.raises(RunError, match=r"the file cannot be written to: .* after step 9, "):
        hook.on_end(STATE)
