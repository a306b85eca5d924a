"""What is saved has the layers alone: padded layouts and others restore each other's states."""

import jax
import numpy as np
import optax
import pytest
from tiny import decoder, plain_batch

from hybrid_jax import Checkpointer, Strategy, make_mesh, make_train_step

ONE_DEVICE = Strategy(precision="f32")
THREE_STAGES = Strategy(stage=3, data=2, microbatches=2, precision="f32")
INTERLEAVED = Strategy(
    stage=2, microbatches=2, schedule="interleaved", chunks=2, zero=3, data=2, precision="f32"
)


def make(strategy):
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    return make_train_step(decoder(num_layers=5), optax.adamw(1e-2), strategy, mesh)


@pytest.mark.parametrize(
    ("saved_on", "restored_on"),
    [(THREE_STAGES, ONE_DEVICE), (ONE_DEVICE, INTERLEAVED), (INTERLEAVED, THREE_STAGES)],
    ids=["padded to one device", "one device to padded", "padded to padded"],
)
def test_a_state_restores_on_any_layout(tmp_path, saved_on, restored_on):
    here, there = make(saved_on), make(restored_on)
    state, _ = here.step(here.init(jax.random.key(0)), plain_batch())
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(here, state)
        checkpointer.wait()
        shapes = checkpointer.manifest().arrays
        assert shapes["params/blocks/mlp/up/kernel"].shape[0] == 5
        restored = checkpointer.restore(there)
        params = checkpointer.restore_params(there)
        on_host = checkpointer.restore_params()
    there.check_state(restored)
    same = lambda a, b: np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b))
    jax.tree.map(same, there.canonical_state(restored), here.canonical_state(state))
    jax.tree.map(same, params, there.canonical_params(restored))
    jax.tree.map(same, on_host, params)
    losses = [
        float(train.step(begin, plain_batch(seed=1))[1]["loss"])
        for train, begin in ((here, state), (there, restored))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)
