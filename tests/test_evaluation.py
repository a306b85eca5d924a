"""The held-out loss is the mean over tokens, however they are cut into batches."""

import jax
import numpy as np
import optax
from tiny import decoder, ragged_batch

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.evaluation import evaluate
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.train.step import make_train_step


def test_batches_count_by_their_weight():
    model, strategy = decoder(), Strategy(precision="f32")
    mesh = make_mesh(strategy, jax.devices()[:1])
    train = make_train_step(model, optax.sgd(0.1), strategy, mesh)
    state = train.init(jax.random.key(0))
    whole = ragged_batch()
    whole["weights"] = whole["weights"].copy()
    whole["weights"][-2:] = 0  # padding only
    parts = [
        {name: leaf[start : start + 2] for name, leaf in whole.items()} for start in (0, 2, 4, 6)
    ]
    np.testing.assert_allclose(
        evaluate(train, state, parts)["loss"], train.evaluate(state, whole)["loss"], rtol=1e-6
    )
