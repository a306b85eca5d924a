"""The door for batches: refused in one line, or the numbers of the same batch written plainly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import LENGTH, VOCAB, decoder, plain_batch, ragged_batch

from hybrid_jax import Strategy, UserError, make_mesh, make_train_step
from hybrid_jax.models.entries import token_entries
from hybrid_jax.train.batch_check import admit

ENTRIES = token_entries(VOCAB, num_positions=16)
LAYOUT = Strategy(data=2, microbatches=2, precision="f32")


@pytest.fixture(scope="module")
def train():
    mesh = make_mesh(LAYOUT, jax.devices()[:2])
    return make_train_step(decoder("gpt2"), optax.sgd(1e-2), LAYOUT, mesh)


@pytest.fixture(scope="module")
def state(train):
    return train.init(jax.random.key(0))


def loss(train, state, batch):
    return float(train.evaluate(state, batch)["loss"])


def without(batch, *names):
    return {name: leaf for name, leaf in batch.items() if name not in names}


PLAIN = plain_batch(4)
ONES = np.ones((4, LENGTH), np.float32)
WRONG = [
    ({}, "must be a dict of arrays"),
    ([PLAIN["tokens"]], "must be a dict of arrays"),
    (without(PLAIN, "tokens"), "lacks 'tokens'"),
    (without(PLAIN, "targets"), "lacks 'targets'"),
    ({**PLAIN, "weight": ONES}, "'weight'.* is not an entry .* Did you mean 'weights'"),
    ({**PLAIN, "attention_mask": ONES}, "'attention_mask'.* is not an entry"),
    ({**PLAIN, "weights": None}, "'weights'.* is None: leave it out"),
    ({**PLAIN, "tokens": PLAIN["tokens"].tolist()}, "'tokens'.* is a list"),
    ({**PLAIN, "tokens": 3}, "'tokens'.* is a int"),
    ({**PLAIN, "tokens": np.int32(3)}, "'tokens'.* is a scalar"),
    ({**PLAIN, "tokens": PLAIN["tokens"].astype(np.float32)}, "has dtype float32, .* integers"),
    ({**PLAIN, "tokens": PLAIN["tokens"] > 3}, "has dtype bool, .* integers"),
    ({**PLAIN, "tokens": PLAIN["tokens"].astype(str)}, "has dtype <U"),
    ({**PLAIN, "tokens": PLAIN["tokens"].astype(object)}, "has dtype object"),
    ({**PLAIN, "tokens": PLAIN["tokens"][0]}, r"has shape \(8,\), but must be \[batch, length\]"),
    ({**PLAIN, "tokens": PLAIN["tokens"][None]}, r"has shape \(1, 4, 8\)"),
    ({**PLAIN, "targets": PLAIN["targets"][:2]}, "batch 2, but .*'tokens'.* batch 4"),
    ({**PLAIN, "targets": PLAIN["targets"][:, :5]}, "length 5, but .*'tokens'.* length 8"),
    ({**PLAIN, "weights": ONES[:, :1]}, "length 1, but .*'tokens'.* length 8"),
    ({**PLAIN, "weights": ONES[:1]}, "batch 1, but .*'tokens'.* batch 4"),
    ({**PLAIN, "weights": ONES[0]}, "batch 8, but .*'tokens'.* batch 4"),
    ({**PLAIN, "weights": ONES[None]}, "has shape"),
    ({**PLAIN, "weights": -ONES}, r"\[0, 0\] is -1.0, but must be finite and not negative"),
    ({**PLAIN, "weights": ONES * np.nan}, "is nan"),
    ({**PLAIN, "weights": ONES * np.inf}, "is inf"),
    ({**PLAIN, "tokens": PLAIN["tokens"] + VOCAB}, "must be from 0 to 63"),
    ({**PLAIN, "tokens": PLAIN["tokens"] - VOCAB}, "must be from 0 to 63"),
    ({**PLAIN, "tokens": PLAIN["tokens"] - 100 * (ONES > 0)}, "must be from 0 to 63"),
    ({**PLAIN, "targets": PLAIN["targets"] - 101}, "or -100 for no target"),
    ({**PLAIN, "targets": PLAIN["targets"].astype(np.int64) + 2**32}, "must be from 0 to 63"),
    ({**PLAIN, "positions": np.full((4, LENGTH), 16)}, "'positions'.* is 16, .* from 0 to 15"),
    ({**PLAIN, "segment_ids": np.full((4, LENGTH), 2**40)}, "must be 32-bit integers"),
    ({k: np.tile(v, (1, 3)) for k, v in PLAIN.items()}, "length 24, but the model has 16 posi"),
    ({k: v[:0] for k, v in PLAIN.items()}, "batch 0: give at least one"),
    ({k: v[:, :0] for k, v in PLAIN.items()}, "length 0: give at least one"),
    ({k: v[:3] for k, v in PLAIN.items()}, "has 3 examples, not divisible by 2 data shards"),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "message"), WRONG, ids=[m[:40] for _, m in WRONG])
def test_a_wrong_batch_is_refused_in_one_line(train, state, batch, message):
    for use in (train.step, train.evaluate):
        with pytest.raises(UserError, match=message) as error:
            use(state, batch)
        assert "\n" not in str(error.value)
    assert not state.step.is_deleted()


# Those of numbers that JAX holds as they are: it has no 64-bit integers here.
ON_DEVICES = [
    (batch, message)
    for batch, message in WRONG
    if "is -1.0" in message or "is nan" in message or "must be from 0 to 63" in message
    if all(isinstance(leaf, np.ndarray) and abs(leaf).max() < 2**31 for leaf in batch.values())
]


@pytest.mark.parametrize(("batch", "message"), ON_DEVICES)
def test_arrays_on_devices_are_looked_at_too(train, batch, message):
    with pytest.raises(UserError, match=message):
        train.put(jax.device_put(batch))


def test_values_on_devices_may_be_left_alone():
    mesh = make_mesh(LAYOUT, jax.devices()[:2])
    train = make_train_step(decoder(), optax.sgd(1.0), LAYOUT, mesh, check_values=False)
    train.put({**PLAIN, "tokens": jnp.asarray(PLAIN["tokens"] + VOCAB)})
    with pytest.raises(UserError, match="length 1"):
        train.put({**PLAIN, "weights": ONES[:, :1]})


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.int64])
def test_integers_of_any_width_give_the_same_numbers(train, state, dtype):
    batch = {name: leaf.astype(dtype) for name, leaf in PLAIN.items()}
    assert loss(train, state, batch) == loss(train, state, PLAIN)


def test_narrow_targets_do_not_wrap_in_a_large_vocabulary():
    """The loss compared them with a counter of their own type, which starts again at 256."""
    model = decoder(vocab_size=600)
    mesh = make_mesh(LAYOUT, jax.devices()[:2])
    train = make_train_step(model, optax.sgd(1e-2), LAYOUT, mesh)
    state, narrow = train.init(jax.random.key(0)), {k: v.astype(np.uint8) for k, v in PLAIN.items()}
    assert loss(train, state, narrow) == loss(train, state, PLAIN)
    placed = {name: jnp.asarray(leaf) for name, leaf in narrow.items()}
    assert loss(train, state, placed) == loss(train, state, PLAIN)


def test_numpy_jax_and_placed_batches_give_the_same_numbers(train, state):
    batch = ragged_batch(4)
    expected = loss(train, state, batch)
    assert loss(train, state, jax.device_put(batch)) == expected
    assert loss(train, state, train.put(batch)) == expected
    assert loss(train, state, train.put(train.put(batch))) == expected
    wide = {**batch, "weights": batch["weights"].astype(np.float64)}
    assert loss(train, state, wide) == expected


def test_an_ignored_target_has_weight_zero(train, state):
    """Its loss was a bare logsumexp."""
    rng = np.random.default_rng(0)
    ignored = rng.random((4, LENGTH)) < 0.3
    weights = rng.uniform(0.5, 2, (4, LENGTH)).astype(np.float32)
    marked = {**PLAIN, "targets": np.where(ignored, -100, PLAIN["targets"]), "weights": weights}
    expected = {**PLAIN, "weights": np.where(ignored, 0, weights).astype(np.float32)}
    for batch in (marked, jax.device_put(marked)):
        found = train.evaluate(state, batch)
        np.testing.assert_allclose(found["loss"], train.evaluate(state, expected)["loss"], 1e-6)
        np.testing.assert_allclose(found["weight"], expected["weights"].sum(), 1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_a_weight_for_each_example_counts_for_all_of_its_tokens(train, state, dtype):
    rows = np.array([1, 0, 1, 1], dtype)
    expected = {**PLAIN, "weights": np.repeat(rows[:, None], LENGTH, 1).astype(np.float32)}
    for weights in (rows, jnp.asarray(rows)):
        assert loss(train, state, {**PLAIN, "weights": weights}) == loss(train, state, expected)


def test_positions_may_restart_in_long_rows(train):
    """What must fit the table is where a token stands in its document."""
    batch = {name: np.tile(leaf, (1, 3)) for name, leaf in PLAIN.items()}
    positions = np.tile(np.arange(LENGTH), (4, 3))
    assert train.put({**batch, "positions": positions})["positions"].dtype == jnp.int32


SIZES = st.integers(0, 5)
DTYPES = st.sampled_from(
    ["int8", "uint8", "int32", "int64", "uint64", "float16", "float64", "bool", "U3", "O"]
)
VALUES = st.sampled_from([0, 1, 5, VOCAB - 1, VOCAB, 255, -1, -100, 2**31, 2**40, -(2**40)])


@st.composite
def arrays(draw):
    """Any array that somebody might put into a batch, most of them nearly right."""
    kind = draw(st.sampled_from(["right", "right", "right", "shape", "dtype", "value", "any"]))
    shape = (4, LENGTH)
    if kind in ("shape", "any"):
        shape = tuple(draw(st.lists(st.one_of(SIZES, st.just(4), st.just(LENGTH)), max_size=3)))
    array = np.full(shape, 1)
    if kind in ("value", "any") and array.size:
        array[np.unravel_index(draw(st.integers(0, array.size - 1)), shape)] = draw(VALUES)
    dtype = draw(DTYPES) if kind in ("dtype", "any") else "int32" if kind != "value" else "int64"
    with np.errstate(over="ignore"):  # what is too large for a narrow float becomes inf
        array = array.astype(dtype)
    if array.dtype.kind == "f" and array.size and draw(st.booleans()):
        array.flat[0] = draw(st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.5]))
    other = draw(st.sampled_from(["array"] * 12 + ["list", "none", "text", "number"]))
    return {"array": array, "list": array.tolist(), "none": None, "text": "a", "number": 3}[other]


NAMES = st.sampled_from(["tokens", "targets"] * 4 + ["weights", "positions", "segment_ids", "x"])


@given(st.dictionaries(NAMES, arrays(), max_size=5), st.booleans())
@settings(max_examples=1500, deadline=None, derandomize=True)
@example({"tokens": np.ones((4, 8), int), "targets": np.full((4, 8), 256 + 5)}, True)
def test_any_batch_is_refused_in_one_line_or_is_what_the_model_takes(batch, keep):
    if keep:  # or most batches would lack what is required
        batch = {**plain_batch(4), **batch}
    try:
        admitted = admit(batch, ENTRIES, shards=2, microbatches=2)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        return
    assert set(admitted) == {*batch, "weights"}
    length = admitted["tokens"].shape[1]
    assert {leaf.shape for leaf in admitted.values()} == {(len(admitted["tokens"]), length)}
    for name, leaf in admitted.items():
        assert leaf.dtype == (np.float32 if name == "weights" else np.int32)
        if name in batch:
            given = np.asarray(batch[name])
            wanted = given[:, None] if given.ndim == 1 else given
            np.testing.assert_allclose(leaf, np.broadcast_to(wanted, leaf.shape), rtol=1e-3)
    for name, low, high in (("tokens", 0, VOCAB), ("targets", -100, VOCAB), ("positions", 0, 16)):
        if name in admitted:
            assert admitted[name].min() >= low and admitted[name].max() < high
    assert np.isfinite(admitted["weights"]).all() and (admitted["weights"] >= 0).all()
