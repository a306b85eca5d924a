"""The guard: a bad update leaves no trace but a count, spikes are told, fp16 finds its scale."""

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import decoder, plain_batch, ragged_batch

from hybrid_jax import Strategy, make_mesh, make_train_step
from hybrid_jax.parity import reference_loss_and_gradients
from hybrid_jax.train import guard as module
from hybrid_jax.train.guard import INITIAL_SCALE, MEMORY_STEPS, SMALLEST_SCALE, Guard, should_update

CUBE = Strategy(stage=2, data=2, model=2, microbatches=2, precision="f32")


def train_on(strategy, tx=None, **options):
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    tx = optax.adamw(1e-2) if tx is None else tx
    # Bad weights stand here for all that makes a loss bad: the door would refuse them.
    options = {"check_values": False, **options}
    return make_train_step(decoder("llama", num_kv_heads=4), tx, strategy, mesh, **options)


def bad_batch(value=np.nan):
    """One token of 64 has a weight that makes loss and gradients something else than numbers."""
    weights = np.ones((8, 8), np.float32)
    weights[5, 3] = value
    return {**plain_batch(), "weights": weights}


def metrics(loss, grad_norm=1.0, weight=1.0):
    values = {"loss": loss, "grad_norm": grad_norm, "weight": weight}
    return {name: jnp.float32(value) for name, value in values.items()}


@pytest.mark.parametrize("strategy", [Strategy(precision="f32"), CUBE, replace(CUBE, zero=3)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_skipped_update_changes_no_bit(strategy, value):
    train = train_on(strategy, clip_norm=1.0)
    state, _ = train.step(train.init(jax.random.key(0)), plain_batch(seed=1))
    before = jax.device_get(state)
    for skipped in (1, 2):
        state, found = train.step(state, bad_batch(value))
        assert (int(found["skipped"]), int(found["skipped_in_a_row"])) == (skipped, skipped)
    after = jax.device_get(state)
    assert int(after.step) == 3
    for name in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    state, found = train.step(state, plain_batch(seed=2))
    assert (int(found["skipped"]), int(found["skipped_in_a_row"])) == (2, 0)
    moved = jax.tree.map(lambda a, b: np.any(a != b), jax.device_get(state.params), before.params)
    assert all(jax.tree.leaves(moved))


def test_a_run_with_a_bad_batch_equals_the_run_without_it():
    batches = [plain_batch(seed=seed) for seed in range(4)]
    train = train_on(Strategy(data=2, precision="f32"))

    def run(batches):
        state = train.init(jax.random.key(0))
        for batch in batches:
            state, _ = train.step(state, batch)
        return jax.device_get((state.params, state.opt_state))

    with_bad, without = run([*batches[:2], bad_batch(), *batches[2:]]), run(batches)
    jax.tree.map(np.testing.assert_array_equal, with_bad, without)


def test_a_bad_gradient_with_a_good_loss_is_skipped():
    good, guard = should_update(Guard.fresh(), metrics(2.0, grad_norm=np.inf))
    assert not good
    assert (int(guard.skipped), int(guard.skipped_in_a_row), int(guard.loss_count)) == (1, 1, 0)


def after_losses(losses, **options):
    """(guard, verdicts) after updates of these losses."""
    step, verdicts, guard = jax.jit(lambda g, m: should_update(g, m, **options)), [], Guard.fresh()
    for loss in losses:
        good, guard = step(guard, metrics(loss))
        verdicts.append(bool(good))
    return guard, verdicts


def test_statistics_are_those_of_exponential_weights():
    losses = np.random.default_rng(0).normal(3.0, 0.1, 250)
    guard, _ = after_losses([*losses[:100], np.nan, *losses[100:]])
    weights = (1 - 1 / MEMORY_STEPS) ** np.arange(250)[::-1]
    mean = np.average(losses, weights=weights)
    variance = np.average((losses - mean) ** 2, weights=weights)
    np.testing.assert_allclose(guard.loss_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(guard.loss_variance, variance, rtol=1e-3)
    assert int(guard.loss_count) == 250


def test_spikes_are_skipped_after_the_warm_up_and_do_not_count():
    losses = np.random.default_rng(0).normal(3.0, 0.1, MEMORY_STEPS)
    losses[50] = 9.0
    _, verdicts = after_losses(losses, spike_sigmas=6.0)
    assert all(verdicts)
    calm, _ = after_losses(np.where(losses == 9, 3, losses), spike_sigmas=6.0)
    after, verdicts = [], []
    for loss in (3.3, 2.0, 3.9, 30.0, 3.0):
        good, next_guard = should_update(calm, metrics(loss), spike_sigmas=6.0)
        verdicts.append(bool(good))
        after.append(int(next_guard.loss_count) - int(calm.loss_count))
    assert verdicts == [True, True, False, False, True]
    assert after == [1, 1, 0, 0, 1]
    assert bool(should_update(calm, metrics(30.0))[0])


def test_spikes_are_skipped_by_the_step():
    train = train_on(Strategy(precision="f32"), spike_sigmas=5.0)
    state = train.init(jax.random.key(0))
    calm = replace(
        state.guard,
        loss_mean=jnp.float32(1.0),
        loss_variance=jnp.float32(0.01),
        loss_count=jnp.int32(MEMORY_STEPS),
    )
    before = jax.device_get(state.params)
    state, found = train.step(replace(state, guard=calm), plain_batch())
    assert found["loss"] > 2
    assert int(found["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)


def test_a_batch_that_counts_for_nothing_is_no_loss():
    _, guard = should_update(Guard.fresh(), metrics(0.0, grad_norm=0.0, weight=0.0))
    assert jax.device_get(asdict(guard)) == jax.device_get(asdict(Guard.fresh()))


FP16 = [Strategy(precision="fp16"), replace(CUBE, precision="fp16")]


@pytest.mark.parametrize("strategy", [*FP16, replace(FP16[1], zero=3, rules="megatron+sp")])
def test_fp16_gradients_are_those_of_f32_but_for_rounding(strategy):
    model, batch = decoder("llama", num_kv_heads=4), ragged_batch(8)
    params = jax.device_get(model.init(jax.random.key(3)))
    loss, expected = reference_loss_and_gradients(model, params, batch)
    found, metrics = train_on(strategy).gradients(params, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-3)
    for grad, right in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert grad.dtype == jnp.float32
        # f16 has 11 bits: a unit in the last place is 2^-10 of the largest entry.
        np.testing.assert_allclose(grad, right, atol=4 * 2**-10 * np.abs(right).max(), rtol=0)


@pytest.mark.parametrize("strategy", FP16, ids=Strategy.describe)
def test_fp16_recovers_from_an_overflow(strategy):
    train, batch = train_on(strategy), ragged_batch(8)
    state = train.init(jax.random.key(0))
    huge = replace(state.guard, loss_scale=jnp.float32(2.0**24))
    state, scales, losses = replace(state, guard=huge), [], []
    for _ in range(30):
        state, found = train.step(state, batch)
        assert int(found["skipped_in_a_row"]) == 0
        scales.append(float(found["loss_scale"]))
        losses.append(float(found["loss"]))
    skipped = int(found["skipped"])
    assert skipped > 3
    assert scales[: skipped + 1] == [2.0 ** (24 - n) for n in range(skipped + 1)]
    assert set(scales[skipped:]) == {scales[skipped]}
    assert len(set(losses[: skipped + 1])) == 1
    assert losses[-1] < 0.9 * losses[0]


def test_the_scale_grows_and_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "GROWTH_STEPS", 2)
    guard, scales = Guard.fresh(), []
    for grad_norm in (1, 1, 1, np.inf, 1, 1):
        _, guard = should_update(guard, metrics(2.0, grad_norm), scaled=True)
        scales.append(float(guard.loss_scale) / INITIAL_SCALE)
    assert scales == [1, 2, 2, 1, 1, 2]
    in_a_row = []
    for _ in range(20):
        _, guard = should_update(guard, metrics(2.0, np.inf), scaled=True)
        in_a_row.append(int(guard.skipped_in_a_row))
    # Once the scale cannot fall any more it is not to blame.
    assert float(guard.loss_scale) == SMALLEST_SCALE
    assert in_a_row == [0] * 18 + [1, 2]


def test_a_bad_loss_does_not_touch_the_scale():
    _, guard = should_update(Guard.fresh(), metrics(np.nan, np.nan), scaled=True)
    assert (float(guard.loss_scale), int(guard.skipped_in_a_row)) == (INITIAL_SCALE, 1)


def test_the_state_on_disk_does_not_depend_on_the_precision():
    shapes = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), train_on(strategy).abstract_state())
        for strategy in (Strategy(precision="f32"), Strategy(), Strategy(precision="fp16"))
    ]
    assert shapes[0] == shapes[1] == shapes[2]
