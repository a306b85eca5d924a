"""The learning rate of the log is the one of the compiled step, and costs no memory by step."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.config.optimizer import OptimizerConfig, learning_rate
from hybrid_jax.train.optimizer import make_learning_rate

PEAK = 3e-3


@pytest.mark.parametrize("steps", [1, 2, 9, 50])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"warmup_steps": 7, "end_fraction": 0.0},
        {"warmup_steps": 1, "decay_fraction": 0.5},
        {"warmup_steps": 4, "decay_fraction": 1.0, "end_fraction": 1.0},
    ],
)
def test_it_is_that_of_the_step(schedule, fields, steps):
    config = OptimizerConfig(learning_rate=PEAK, schedule=schedule, **fields)
    on_device = jax.vmap(make_learning_rate(config, steps))(jnp.arange(steps + 3))
    on_host = [learning_rate(config, update, steps) for update in range(steps + 3)]
    np.testing.assert_allclose(on_host, on_device, rtol=0, atol=2e-7 * PEAK)


def test_it_takes_no_memory():
    config = OptimizerConfig(warmup_steps=1000)
    tracemalloc.start()
    last = learning_rate(config, 10_000_000 - 1, 10_000_000)
    assert tracemalloc.get_traced_memory()[1] < 10_000
    tracemalloc.stop()
    np.testing.assert_allclose(last, config.learning_rate * config.end_fraction, rtol=1e-6)
