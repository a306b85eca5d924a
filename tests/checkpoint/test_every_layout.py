"""A state saved under any of six layouts resumes under any of them."""

import jax
import numpy as np
import optax
import pytest
from tiny import decoder, plain_batch

from hybrid_jax import Checkpointer, Strategy, make_mesh, make_train_step

LAYOUTS = [
    Strategy(precision="f32"),
    Strategy(data=2, stage=2, model=2, microbatches=2, precision="f32"),
    Strategy(data=4, stage=2, microbatches=2, schedule="interleaved", chunks=2, precision="f32"),
    Strategy(model=2, data=4, zero=3, rules="megatron+sp", precision="f32"),
    Strategy(stage=4, data=2, microbatches=4, schedule="gpipe", zero=0, precision="f32"),
    Strategy(replica=2, data=2, model=2, precision="f32"),
]


@pytest.fixture(scope="module")
def trains():
    """The same model and optimizer on every layout."""
    trains = []
    for strategy in LAYOUTS:
        mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
        trains.append(make_train_step(decoder(), optax.adamw(1e-2), strategy, mesh))
    return trains


@pytest.fixture(scope="module")
def saved(trains, tmp_path_factory):
    """A checkpoint of each layout after two updates: (its folder, its canonical state)."""
    saved = []
    for number, train in enumerate(trains):
        state = train.init(jax.random.key(0))
        for seed in range(2):
            state, _ = train.step(state, plain_batch(seed=seed))
        folder = tmp_path_factory.mktemp(f"layout{number}")
        with Checkpointer(folder) as checkpointer:
            checkpointer.save(train, state)
        saved.append((folder, jax.device_get(train.canonical_state(state))))
    return saved


@pytest.mark.slow
@pytest.mark.parametrize("target", range(len(LAYOUTS)))
def test_every_layout_restores_every_other(trains, saved, target):
    train, losses = trains[target], []
    for folder, expected in saved:
        with Checkpointer(folder) as checkpointer:
            state = checkpointer.restore(train)
        # Bit for bit what was saved: parameters, both moments, counters.
        found = jax.device_get(train.canonical_state(state))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        losses.append(float(train.evaluate(state, plain_batch(seed=2))["loss"]))
        state, metrics = train.step(state, plain_batch(seed=2))
        assert float(metrics["loss"]) == pytest.approx(losses[-1], rel=1e-6)
    # The six states differ by rounding, so their next losses do.
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_the_files_do_not_depend_on_the_layout(saved):
    """Names, shapes and logical axes are the same."""
    descriptions = []
    for folder, _ in saved:
        with Checkpointer(folder) as checkpointer:
            arrays = checkpointer.manifest().arrays
        descriptions.append({name: (e.shape, e.dtype, e.axes) for name, e in arrays.items()})
    assert all(description == descriptions[0] for description in descriptions)
