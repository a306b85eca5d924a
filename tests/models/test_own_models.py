"""What a user's modules, losses and batches can get wrong is told when the model is made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from hybrid_jax import Strategy, bench, check_parity, inspect, make_mesh, make_train_step
from hybrid_jax.errors import UserError
from hybrid_jax.models import from_flax, from_parts

BATCH = {"x": np.ones((4, 5, 6), np.float32), "y": np.zeros((4,), np.int32)}


class Part(nn.Module):
    """A dense layer and any function (x, train) of what it returns."""

    after: object = lambda x, train: x

    @nn.compact
    def __call__(self, x, train=False):
        return self.after(nn.Dense(6)(x), train)


def dropped(x, train):
    return nn.Dropout(0.5, deterministic=not train)(x)


def first_feature(output, batch):
    return output[..., 0]


def whole(module=None, loss=first_feature, batch=BATCH, inputs=("x",)):
    return from_flax(Part() if module is None else module, loss, batch, inputs=inputs)


def parts(embed=None, block=None, head=None, loss=first_feature, **options):
    modules = [Part() if after is None else Part(after) for after in (embed, block, head)]
    return from_parts(*modules, loss, BATCH, **{"num_layers": 2, "inputs": ["x"], **options})


LOSSES = {
    "a tuple": (lambda o, b: (o, o), "returned a tuple, not an array"),
    "a number": (lambda o, b: 1.0, "returned a float, not an array"),
    "nothing": (lambda o, b: None, "returned a NoneType, not an array"),
    "NumPy's": (lambda o, b: np.ones(4), "returned a ndarray, not an array"),
    "a mean": (lambda o, b: jnp.mean(o), r"shape \(\) for a batch of 4 examples: return one loss"),
    "another batch": (lambda o, b: o[:2, :, 0], r"shape \(2, 5\) for a batch of 4 examples"),
    "no losses": (lambda o, b: o[:, :0, 0], r"an empty array, shape \(4, 0\)"),
    "integers": (lambda o, b: jnp.argmax(o, -1), "returned int32, which has no gradient"),
    "complex": (lambda o, b: o.astype(complex), "returned complex64, which has no gradient"),
    "booleans": (lambda o, b: o > 0, "returned bool, which has no gradient"),
    "text": ("mse", "loss='mse' must be a function"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_loss_that_cannot_be_averaged_is_refused(case):
    loss, message = LOSSES[case]
    for make in (whole, parts):
        with pytest.raises(UserError, match=message) as error:
            make(loss=loss)
        assert "\n" not in str(error.value)


def test_weights_of_another_shape_than_the_losses_are_refused():
    with pytest.raises(UserError, match=r"shape \(4, 5\) but batch\['weights'\] has \(4, 2\)"):
        whole(batch={**BATCH, "weights": np.ones((4, 2), np.float32)})


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], r"example_batch=\[1, 2\] must be a dict"),
        ({}, "must be a dict"),
        ({"x": np.float32(1)}, r"\['x'\] is a scalar"),
        ({"x": [1, 2]}, r"\['x'\] is a list"),
        ({"x": np.ones((0, 6))}, r"\['x'\] is empty, \(0, 6\)"),
        ({**BATCH, "y": np.ones(3)}, r"unequal numbers of examples, \{'x': 4, 'y': 3\}"),
    ],
)
def test_an_example_batch_must_be_one(batch, message):
    with pytest.raises(UserError, match=message):
        whole(batch=batch)


def test_inputs_are_a_list_of_names():
    with pytest.raises(UserError, match=r"inputs='x' must be a list of names, e.g. \['x'\]"):
        whole(inputs="x")
    with pytest.raises(UserError, match="block_inputs='y' must be a list"):
        parts(block_inputs="y")
    with pytest.raises(UserError, match="input 'z' is not in the batch, which has x, y"):
        parts(block_inputs=["z"])


class Integer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param("count", lambda key: jnp.ones((1, 1, 1), jnp.int32))


class Nothing(nn.Module):
    def __call__(self, x):
        return x


MODULES = {
    "None": (None, "None is not a module"),
    "a class": (nn.Dense, "the class Dense is not a module"),
    "a Linen maker": (lambda rngs: nn.Dense(6), "<lambda> builds a Dense: pass a function"),
    "no maker": (lambda rngs: {}, "<lambda> builds a dict: pass a function"),
    "text": (Part(lambda x, train: "text"), "Part returns a str"),
    "integer parameters": (Integer(), "parameter count is int32"),
    "no parameters": (Nothing(), "Nothing has no parameters"),
    "no batch dim": (
        Part(lambda x, train: (dropped(x, train), jnp.mean(x))),
        r"Part returns shape \(\) for one example",
    ),
}


@pytest.mark.parametrize("case", MODULES)
def test_what_is_no_trainable_module_is_refused(case):
    module, message = MODULES[case]
    loss = lambda output, batch: jax.tree.leaves(output)[0][..., 0]
    with pytest.raises(UserError, match=message):
        from_flax(module, loss, BATCH, inputs=["x"])


PARTS = {
    "embed in two": ({"embed": lambda x, t: (x, x)}, r"as embed returns \(float32\[4, 5, 6\], "),
    "embed integers": ({"embed": lambda x, t: x.astype(int)}, r"as embed returns int32\[4, 5, 6\]"),
    "embed of the batch": (
        {"embed": lambda x, t: jnp.sum(x, 0, keepdims=True)},
        r"returns float32\[1, 5, 6\]",
    ),
    "block narrower": (
        {"block": lambda x, t: x[..., :2]},
        r"block maps float32\[4, 5, 6\] to float32\[4, 5, 2\]",
    ),
    "block narrower in training": (
        {"block": lambda x, t: x[..., :2] if t else x},
        r"to float32\[4, 5, 2\] in training mode, float32\[4, 5, 6\] in evaluation mode",
    ),
    "block in two": ({"block": lambda x, t: (x, x)}, r"to \(float32\[4, 5, 6\], float32"),
    "block of another dtype": (
        {"block": lambda x, t: x.astype(jnp.bfloat16)},
        r"to bfloat16\[4, 5, 6\]",
    ),
    "layers": ({"num_layers": 2.0}, "num_layers=2.0 must be an integer"),
    "no layers": ({"num_layers": 0}, "num_layers=0 must be"),
    "head dims": ({"head_dims": "batch"}, "head_dims='batch' must be"),
    "one loss for many tokens": (
        {"loss": lambda o, b: o[:, 0, 0], "head_dims": ("batch", "length")},
        r"needs one loss for each token, \[4, 5\], not \[4\]",
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts_that_do_not_fit_are_refused(case):
    options, message = PARTS[case]
    with pytest.raises(UserError, match=message) as error:
        parts(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("x", [np.ones((4, 6), "f4"), np.ones((4, 2, 3, 6), "f4")])
def test_x_may_have_any_rank(x):
    x = x * np.random.default_rng(0).normal(size=x.shape).astype("f4")
    model = from_parts(
        *[Part()] * 3, first_feature, {"x": x}, num_layers=2, inputs=["x"], head_dims=("batch",)
    )
    strategy = Strategy(stage=2, microbatches=2)
    check_parity(model, [strategy], batch={"x": x}, devices=jax.devices()[:2]).raise_if_different()


def test_parameters_of_a_narrow_dtype_train_as_float32():
    half = {"param_dtype": jnp.bfloat16}
    for module in (nn.Dense(6, **half), lambda rngs: nnx.Linear(6, 6, **half, rngs=rngs)):
        shapes = jax.eval_shape(whole(module).init, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_a_batch_holds_what_the_example_holds():
    for model in (whole(), parts()):
        assert set(model.batch_entries().entries) == {"x", "y", "weights"}
        assert model.batch_entries().entries["weights"].axes == ("batch", None)


def dense(features):
    return lambda rngs: nnx.Linear(6, features, rngs=rngs)


def squared_error(output, batch):
    return jnp.mean((output - batch["y"]) ** 2, axis=-1)


LABELLED = {"x": np.ones((4, 6), np.float32), "y": np.ones((4, 6), np.float32)}
OWN = {
    "whole": from_flax(dense(6), squared_error, LABELLED, inputs=["x"]),
    "parts": from_parts(
        dense(6), dense(6), dense(6), squared_error, LABELLED, num_layers=2, inputs=["x"]
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_own_models_are_inspected_and_timed(name):
    model = OWN[name]
    strategy = Strategy(stage=1 if name == "whole" else 2, data=2, microbatches=2, precision="f32")
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    train = make_train_step(model, optax.sgd(0.1), strategy, mesh)
    report = inspect(train, (8,))
    assert "batch 8" in str(report) and report.flops.model is None
    shapes = dict.fromkeys(["x", "y"], jax.ShapeDtypeStruct((8, 6), jnp.float32))
    assert train.lower((8,)).as_text() == train.lower(shapes).as_text()
    rows = bench(model, [strategy], (8,), steps=1).rows
    np.testing.assert_allclose([row.loss for row in rows], rows[0].loss, rtol=1e-5)
