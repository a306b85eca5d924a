"""Cross entropy over a vocabulary that may be sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid_jax.models.loss import cross_entropy


def scores():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 3, 16)).astype("f4"), rng.integers(0, 16, (2, 3)).astype("i4")


def test_it_is_the_negative_log_probability_of_the_target():
    logits, targets = scores()
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_allclose(cross_entropy(logits, targets), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_do_not_overflow(size):
    logits, targets = scores()
    losses = cross_entropy(logits + np.float32(size), targets)
    np.testing.assert_allclose(losses, cross_entropy(logits, targets), atol=2e-3)


def test_a_sharded_vocabulary_never_exchanges_logits():
    logits, targets = scores()
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P(None, None, "model"))
    step = jax.jit(
        jax.grad(lambda logits: jnp.sum(cross_entropy(logits, targets))), in_shardings=sharding
    )
    hlo = step.lower(logits).compile().as_text()
    assert "all-reduce" in hlo
    assert "all-gather" not in hlo and "all-to-all" not in hlo
