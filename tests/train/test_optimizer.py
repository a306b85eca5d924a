"""Optimizers from config: their schedules, what decays, what Muon sees, and one step on a mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import decoder, ragged_batch

from hybrid_jax import Strategy, UserError, make_mesh, make_train_step
from hybrid_jax.config.optimizer import OptimizerConfig
from hybrid_jax.parity import reference_loss_and_gradients
from hybrid_jax.sharding.placement import path_name
from hybrid_jax.train.optimizer import (
    decay_mask,
    make_learning_rate,
    make_optimizer,
    muon_dimensions,
)


def rate(step, schedule, **fields):
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, **fields)
    return float(make_learning_rate(config, total_steps=100)(step))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_warm_up_rises_from_zero_to_the_peak(schedule):
    rates = [rate(step, schedule, warmup_steps=10) for step in (0, 5, 10)]
    np.testing.assert_allclose(rates, [0.0, 1.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_without_warm_up_the_first_step_is_at_the_peak(schedule):
    assert rate(0, schedule) == 2.0


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [
        ("constant", 2.0, 2.0),
        ("cosine", (2.0 + 0.2) / 2, 0.2),
        ("linear", (2.0 + 0.2) / 2, 0.2),
        ("wsd", 2.0, 0.2),
    ],
)
def test_after_the_warm_up(schedule, middle, end):
    fields = {"warmup_steps": 20, "end_fraction": 0.1}
    np.testing.assert_allclose(rate(60, schedule, **fields), middle, rtol=1e-5)
    np.testing.assert_allclose(rate(100, schedule, **fields), end, rtol=1e-5)
    assert rate(130, schedule, **fields) == rate(100, schedule, **fields)


def test_wsd_stays_then_falls_linearly():
    fields = {"warmup_steps": 5, "decay_fraction": 0.2, "end_fraction": 0.0}
    rates = [rate(step, "wsd", **fields) for step in (79, 80, 90, 95)]
    np.testing.assert_allclose(rates, [2.0, 2.0, 1.0, 0.5], rtol=1e-5)


def test_a_warm_up_longer_than_the_run_still_rises():
    config = OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup_steps=100)
    assert float(make_learning_rate(config, total_steps=10)(5)) == pytest.approx(0.1)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_matrices_decay_and_nothing_else(style):
    model = decoder(style)
    mask = decay_mask(jax.eval_shape(model.init, jax.random.key(0)))
    decays = {path_name(path): on for path, on in jax.tree_util.tree_leaves_with_path(mask)}
    for path, on in decays.items():
        assert on == (not path.endswith(("bias", "scale"))), path
    assert decays["blocks/attention/o/kernel"] and decays["embed/tokens"]
    assert set(decays.values()) == {True, False}


def test_muon_sees_heads_and_their_dims_as_one():
    dimensions = muon_dimensions(decoder("gpt2").axes())
    attention = dimensions["blocks"]["attention"]
    numbers = optax.contrib.MuonDimensionNumbers
    assert attention["q"]["kernel"] == numbers(reduction_axis=(1,), output_axis=(2, 3))
    assert attention["o"]["kernel"] == numbers(reduction_axis=(1, 2), output_axis=(3,))
    assert dimensions["blocks"]["mlp"]["up"]["kernel"] == numbers((1,), (2,))
    assert dimensions["blocks"]["mlp"]["down"]["kernel"] == numbers((1,), (2,))
    assert attention["q"]["bias"] is None
    assert dimensions["blocks"]["mlp_norm"]["scale"] is None
    assert dimensions["embed"]["tokens"] is None


@pytest.mark.parametrize("field", ["name", "schedule"])
def test_an_unknown_choice_gets_a_hint(field):
    wrong, right = {"name": ("adamv", "adamw"), "schedule": ("cosin", "cosine")}[field]
    with pytest.raises(UserError, match=f"{field}='{wrong}'.*Did you mean '{right}'"):
        make_optimizer(OptimizerConfig(**{field: wrong}), 10, decoder().axes())


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_a_step_on_the_cube_equals_one_on_one_device(name):
    config = OptimizerConfig(name, learning_rate=1e-2, clip_norm=None)
    model, batch = decoder("llama"), ragged_batch(8)
    strategy = Strategy(stage=2, data=2, model=2, microbatches=2, precision="f32")
    tx = make_optimizer(config, 10, model.axes())
    train = make_train_step(model, tx, strategy, make_mesh(strategy))
    check_moments_are_split(train)
    state = train.init(jax.random.key(0))
    params = jax.device_get(train.canonical_params(state))
    _, grads = jax.device_get(reference_loss_and_gradients(model, params, batch))
    expected = jax.device_get(jax.jit(lambda p, g: one_step(tx, p, g))(params, grads))
    state, _ = train.step(state, batch)
    found = jax.device_get(train.canonical_params(state))

    def compare(found, expected, grad):
        # The first update of all but Muon is the gradient divided by its own size: where the
        # gradient is nothing but rounding error, so is the update's sign.
        decided = (grad == 0) | (np.abs(grad) > 1e-3 * np.abs(grad).max())
        assert decided.mean() > 0.9
        np.testing.assert_allclose(found[decided], expected[decided], rtol=1e-5, atol=2e-6)

    jax.tree.map(compare, found, expected, grads)


def one_step(tx, params, grads):
    updates, _ = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates)


def check_moments_are_split(train):
    """Every array of a matrix's size is split over all eight devices, in the optimizer too."""
    state = train.abstract_state()
    large = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.size >= 16 * 16]
    assert len(large) >= len([p for p in jax.tree.leaves(state.params) if p.size >= 16 * 16])
    for leaf in large:
        assert leaf.dtype == jnp.float32
        assert math.prod(leaf.sharding.shard_shape(leaf.shape)) == leaf.size // 8
