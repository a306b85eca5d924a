"""The door for states: those of another layout, model or optimizer never get in."""

import jax
import numpy as np
import optax
import pytest
from tiny import decoder, plain_batch

from hybrid_jax import Checkpointer, Strategy, UserError, make_mesh, make_train_step

PLAIN = Strategy(stage=2, data=2, microbatches=2, precision="f32")
INTERLEAVED = Strategy(
    stage=2, data=2, microbatches=2, precision="f32", schedule="interleaved", chunks=2
)


def train_on(strategy, model=None, tx=None):
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    return make_train_step(model or decoder(), tx or optax.adam(1e-2), strategy, mesh)


@pytest.fixture(scope="module")
def trains():
    return train_on(PLAIN), train_on(INTERLEAVED)


def uses(train, state, folder):
    """Everything that reads a state, each with what it is called."""
    batch = plain_batch(8)
    yield "step", lambda: train.step(state, batch)
    yield "evaluate", lambda: train.evaluate(state, batch)
    yield "gradients", lambda: train.gradients(state, batch)
    yield "canonical_params", lambda: train.canonical_params(state)
    yield "canonical_state", lambda: train.canonical_state(state)
    yield "save", lambda: Checkpointer(folder).save(train, state)


@pytest.mark.parametrize(("there", "here"), [(0, 1), (1, 0)], ids=["1f1b", "interleaved"])
def test_a_state_in_another_order_of_layers_is_refused(trains, there, here, tmp_path):
    """Both states have the same shapes and lie in the same places: it trained, permuted."""
    state = trains[there].init(jax.random.key(0))
    for name, use in uses(trains[here], state, tmp_path):
        with pytest.raises(UserError, match="layers in the order of") as error:
            use()
        assert "\n" not in str(error.value), name
    assert not state.step.is_deleted()
    with pytest.raises(UserError, match="move it by"):
        trains[here].from_canonical(trains[1].init(jax.random.key(0)))


@pytest.mark.parametrize("layout", [0, 1], ids=["1f1b", "interleaved"])
def test_a_state_that_was_donated_is_refused(trains, layout, tmp_path):
    """The second step ended the process with a segmentation fault."""
    train = trains[layout]
    state = train.init(jax.random.key(0))
    train.step(state, plain_batch(8))
    for name, use in uses(train, state, tmp_path):
        with pytest.raises(UserError, match=r"is gone.* use the state that it returned") as error:
            use()
        assert "\n" not in str(error.value), name
    with pytest.raises(UserError, match=r"is gone"):
        trains[0].gradients(state.params, plain_batch(8))


def test_a_state_moves_between_layouts_without_a_file(trains):
    plain, interleaved = trains
    state = plain.init(jax.random.key(0))
    expected = plain.evaluate(state, plain_batch(8))
    on_host = jax.device_get(plain.canonical_state(state))
    moved = interleaved.from_canonical(plain.canonical_state(state))
    np.testing.assert_allclose(
        interleaved.evaluate(moved, plain_batch(8))["loss"], expected["loss"], rtol=1e-6
    )
    # On other devices, and from the host.
    other = train_on(Strategy(model=2, precision="f32"))
    for canonical in (interleaved.canonical_state(moved), on_host):
        there = other.from_canonical(canonical)
        found = other.evaluate(there, plain_batch(8))
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)


def test_gradients_of_a_whole_state_are_those_of_its_canonical_parameters(trains):
    plain, interleaved = trains
    state = interleaved.init(jax.random.key(3))
    found, _ = interleaved.gradients(state, plain_batch(8))
    expected, _ = plain.gradients(interleaved.canonical_params(state), plain_batch(8))
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(jax.device_get(expected)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest),
        jax.device_get(found),
        jax.device_get(expected),
    )


@pytest.mark.parametrize(
    ("strategy", "model", "tx", "message"),
    [
        (PLAIN, decoder(num_layers=8), None, r"float32\[8, 16, .* but float32\[4, 16"),
        (PLAIN, decoder("gpt2"), None, "the state has .*bias, which this step does not have"),
        (PLAIN, None, optax.sgd(1e-2), "this step has opt_state/0/count, which the state does not"),
        (PLAIN, None, optax.chain(optax.adam(1e-2)), "another model or optimizer"),
        (Strategy(data=4), None, None, "lies on data=4 as .* but must lie on stage=2 x data=2"),
        (Strategy(), None, None, "lies on one device"),
    ],
)
def test_a_state_of_another_step_is_refused(trains, strategy, model, tx, message):
    state = train_on(strategy, model, tx).init(jax.random.key(0))
    with pytest.raises(UserError, match=message) as error:
        trains[0].step(state, plain_batch(8))
    assert "\n" not in str(error.value)


def test_what_is_no_state_is_refused(trains):
    state = trains[0].init(jax.random.key(0))
    for wrong in (None, state.params, (state, {})):
        with pytest.raises(UserError, match="give the TrainState that"):
            trains[0].step(wrong, plain_batch(8))
    with pytest.raises(UserError, match="lies on the host"):
        trains[0].step(jax.device_get(state), plain_batch(8))
    with pytest.raises(UserError, match="the parameters lack"):
        trains[0].gradients({"embed": {}}, plain_batch(8))
