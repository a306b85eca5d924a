"""A user's own pipeline table trains: the same gradients, by another order of the work."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from tiny import decoder, ragged_batch

from hybrid_jax import Schedule, Strategy, UserError, make_mesh, make_train_step, schedule

STAGES, MICROBATCHES = 2, 4
STRATEGY = Strategy(stage=STAGES, data=2, microbatches=MICROBATCHES, precision="f32")


def own_table(microbatches=MICROBATCHES):
    """All forwards, then the backwards in the opposite order."""
    rows = schedule("gpipe", STAGES, microbatches).tasks()
    last = microbatches - 1
    mirror = lambda task: replace(task, microbatch=last - task.microbatch)
    backward = lambda cell: tuple(mirror(t) if t.kind == "B" else t for t in cell)
    return Schedule.from_tasks(
        [[backward(cell) for cell in row] for row in rows],
        stages=STAGES,
        microbatches=microbatches,
        name="mirrored",
    )


def make(table=None, strategy=STRATEGY):
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    return make_train_step(decoder(), optax.sgd(0.1), strategy, mesh, schedule=table)


def test_an_own_table_has_the_gradients_of_the_strategys_schedule():
    trains = [make(own_table()), make()]
    assert [train.schedule.name for train in trains] == ["mirrored", "1f1b"]
    params = decoder().init(jax.random.key(0))
    found, expected = (train.gradients(params, ragged_batch(16)) for train in trains)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


def test_a_table_of_other_sizes_is_refused():
    with pytest.raises(UserError, match="microbatches=3, but the strategy has 4") as error:
        make(own_table(3))
    assert "\n" not in str(error.value)
