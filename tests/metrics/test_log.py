"""The log: records come one step late and complete, and time that is not training is left out."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.metrics.log import Log


class Collect:
    name, essential = "the list", True

    def __init__(self):
        self.records, self.closed = [], False

    def write(self, step, values):
        self.records.append((step, dict(values)))

    def close(self):
        self.closed = True


def make_log(**options):
    collect = Collect()
    return Log([collect], **{"every": 1, "tokens_per_step": 10, **options}), collect


def metrics(loss):
    return {"loss": jnp.float32(loss)}


def test_a_record_is_fetched_when_the_next_step_has_been_dispatched():
    log, collect = make_log()
    log.on_step(1, None, metrics(5))
    assert log.latest == {}
    log.on_step(2, None, metrics(4))
    assert log.latest["loss"] == 5
    log.on_end(None)
    assert [(step, values["loss"]) for step, values in collect.records] == [(1, 5), (2, 4)]


def test_the_first_and_every_nth_step_are_recorded():
    log, collect = make_log(every=3)
    for step in range(1, 8):
        log.on_step(step, None, metrics(step))
    log.on_end(None)
    assert [step for step, _ in collect.records] == [1, 3, 6]


def test_throughput_counts_all_steps_since_the_last_record():
    log, collect = make_log(every=2, flops_per_token=3.0, peak_flops=600.0)
    for step in range(1, 6):
        log.on_step(step, None, metrics(0))
        time.sleep(0.05)
    log.on_end(None)
    for _, values in collect.records:
        # Sleeping is exact from below only.
        assert 0.05 <= values["step_seconds"] < 0.2
        np.testing.assert_allclose(values["tokens_per_second"], 10 / values["step_seconds"])
        np.testing.assert_allclose(values["mfu"], values["tokens_per_second"] * 3 / 600)


def test_the_share_of_waiting_is_of_the_time_since_the_last_record():
    waited = 100.0  # before the clock starts: while the step was compiled
    log, collect = make_log(every=2, input_wait=lambda: waited)
    for step in range(1, 6):
        log.on_step(step, None, metrics(0))
        time.sleep(0.05)
        waited += step / 100
    log.on_end(None)
    records = [values for _, values in collect.records]
    # Of step 1, of step 2, of steps 3 and 4, each until the next step is there.
    expected = np.array([0.01, 0.02, 0.07 / 2]) / [r["step_seconds"] for r in records]
    shares = [values["input_wait_share"] for values in records]
    np.testing.assert_allclose(shares, expected, rtol=1e-9)


def test_an_unknown_peak_gives_no_mfu():
    log, collect = make_log(flops_per_token=3.0)
    log.on_step(1, None, metrics(0))
    log.on_end(None)
    assert not {"mfu", "input_wait_share"} & collect.records[0][1].keys()


def test_a_pause_is_not_training_and_writes_what_is_due_first():
    log, collect = make_log()
    log.on_step(1, None, metrics(5))
    with log.paused():
        time.sleep(0.3)
    log.write(1, {"eval_loss": 3.0})
    log.on_step(2, None, metrics(4))
    log.on_end(None)
    assert [sorted(values)[0] for _, values in collect.records] == ["loss", "eval_loss", "loss"]
    assert all(values.get("step_seconds", 0) < 0.2 for _, values in collect.records)


def test_learning_rates_are_those_of_the_updates():
    log, collect = make_log(learning_rate=[0.1, 0.2].__getitem__)
    log.on_step(1, None, metrics(0))
    log.on_step(2, None, metrics(0))
    log.on_end(None)
    assert [values["learning_rate"] for _, values in collect.records] == [0.1, 0.2]


def test_learning_rates_count_the_updates_made():
    log, collect = make_log(learning_rate=[0.1, 0.2, 0.3, 0.4].__getitem__)
    for step, skipped in enumerate((1, 1, 2, 2), start=1):
        log.on_step(step, None, {**metrics(0), "skipped": jnp.int32(skipped)})
    log.on_end(None)
    assert [values["learning_rate"] for _, values in collect.records] == [0.1, 0.1, 0.1, 0.2]


def test_writers_are_closed_when_the_run_fails():
    log, collect = make_log()
    with pytest.raises(RuntimeError), log:
        raise RuntimeError("the run failed")
    assert collect.closed
