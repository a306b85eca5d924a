"""Arrays of an NNX module that are not trained: part of the program, not of the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from hybrid_jax import Strategy, check_parity
from hybrid_jax.errors import UserError
from hybrid_jax.models import from_flax, from_parts
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.train.step import make_train_step

LENGTH, DIM = 5, 8


class Table(nnx.Variable):
    """Declared constant by the tests."""


class Positions(nnx.Module):
    """Adds sines; a JAX array, a NumPy array, one in a list and a declared variable."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(DIM, DIM, rngs=rngs)
        angles = jnp.arange(LENGTH)[:, None] / 10.0 ** jnp.arange(DIM)[None]
        self.sines = jnp.sin(angles)
        self.order = np.arange(DIM)[::-1]
        self.shifts = nnx.List([jnp.full((1, DIM), 0.5)])
        self.scale = Table(jnp.linspace(1.0, 2.0, DIM)[None, None])

    def __call__(self, x):
        # NumPy's sort runs while tracing: the order is still NumPy's.
        x = self.dense(x)[..., np.argsort(self.order)]
        return x * self.scale[...] + (self.sines + self.shifts[0])[None]


class Masked(nnx.Module):
    """A block that mixes tokens under a causal mask."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(DIM, DIM, rngs=rngs)
        self.mask = jnp.tril(jnp.ones((LENGTH, LENGTH))) / LENGTH

    def __call__(self, x):
        return x + jnp.einsum("qk,bkd->bqd", self.mask, jnp.tanh(self.dense(x)))


def batch(size=8):
    x = np.random.default_rng(0).normal(size=(size, LENGTH, DIM)).astype("f4")
    return {"x": x, "y": x[:, ::-1].copy()}


def squares(output, batch):
    return jnp.sum((output - batch["y"]) ** 2, axis=-1)


def whole(make=Positions, constants=(Table,)):
    return from_flax(make, squares, batch(), inputs=["x"], constants=constants)


def staged():
    return from_parts(
        Positions,
        Masked,
        nn.Dense(DIM),
        squares,
        batch(),
        num_layers=4,
        inputs=["x"],
        constants=(Table,),
    )


def test_constants_are_used_but_not_trained():
    model = whole()
    params = model.init(jax.random.key(0))
    assert params["embed"].keys() == {"dense"}
    dense = jax.device_get(params["embed"]["dense"])
    x = batch()["x"] @ dense["kernel"] + dense["bias"]
    angles = np.arange(LENGTH)[:, None] / 10.0 ** np.arange(DIM)
    expected = x[..., ::-1] * np.linspace(1, 2, DIM) + np.sin(angles) + 0.5
    expected = np.sum((expected - batch()["y"]) ** 2)
    for call in (model.loss, jax.jit(model.loss), model.loss):
        np.testing.assert_allclose(call(params, batch()), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(data=2, model=2, zero=3, microbatches=2),
        Strategy(stage=2, data=2, microbatches=2, schedule="interleaved", chunks=2),
    ],
    ids=Strategy.describe,
)
def test_constants_are_the_same_on_every_layout(strategy):
    check_parity(
        staged(), [strategy], batch=batch(), devices=jax.devices()[: strategy.num_devices]
    ).raise_if_different()


def test_float32_constants_leave_a_bf16_pipeline_in_bf16():
    strategy = Strategy(stage=2, microbatches=2, precision="bf16")
    mesh = make_mesh(strategy, devices=jax.devices()[:2])
    train = make_train_step(staged(), optax.sgd(0.1), strategy, mesh)
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in batch().items()}
    train.trace(shapes)


class Huge(nnx.Module):
    """4 TiB of parameters beside a constant."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(1 << 20, 1 << 20, rngs=rngs)
        self.shift = jnp.ones((1, 1 << 20))

    def __call__(self, x):
        return self.dense(x) + self.shift


def test_parameters_are_not_made_to_make_constants():
    x = jax.ShapeDtypeStruct((4, 1 << 20), jnp.float32)
    model = from_flax(Huge, lambda output, batch: output[:, 0], {"x": x}, inputs=["x"])
    assert model.axes()["embed"]["dense"]["kernel"] == (None, None)


class Assigning(Positions):
    """Its call changes what it holds."""

    def __init__(self, rngs, what):
        super().__init__(rngs)
        self.what = what

    @nnx.remat
    def __call__(self, x):
        if self.what == "sines":
            self.sines = self.sines + 1
        elif self.what == "scale":
            self.scale[...] = self.scale[...] + 1
        elif self.what == "dense.bias":
            self.dense.bias[...] = self.dense.bias[...] * 0.9
        return super().__call__(x)


def holding(**attributes):
    """A module with one more attribute, made when it is built."""

    def make(rngs):
        module = Positions(rngs)
        for name, value in attributes.items():
            setattr(module, name, value(rngs))
        return module

    return make


def closure(rngs):
    table = jnp.ones((DIM,))
    return lambda x: x + table[None, None]


class Calling(Positions):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.add = closure(rngs)

    def __call__(self, x):
        return self.add(super().__call__(x))


class Norm(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(DIM, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


REFUSED = {
    "not declared": (Positions, (), r"holds state .*\(Table\).*constants=\(Table,\)"),
    "assigned array": (lambda rngs: Assigning(rngs, "sines"), (Table,), "assigns self.sines"),
    "assigned variable": (lambda rngs: Assigning(rngs, "scale"), (Table,), "assigns self.scale"),
    "assigned parameter": (
        lambda rngs: Assigning(rngs, "dense.bias"),
        (Table,),
        "assigns self.dense.bias",
    ),
    "random": (
        holding(noise=lambda rngs: jax.random.normal(rngs.params(), (3,))),
        (Table,),
        "self.noise depends on the key .* make it an nnx.Param",
    ),
    "a key": (holding(key=lambda rngs: jax.random.key(0)), (Table,), "self.key is a random key"),
    "in a dict": (
        holding(tables=lambda rngs: {"a": jnp.ones(3)}),
        (Table,),
        "Positions.tables holds arrays in a dict: use nnx.Dict",
    ),
    "in a function": (Calling, (Table,), "keeps an array where NNX does not look"),
    "batch statistics": (Norm, (nnx.BatchStat,), "assigns self.norm.mean"),
    "all parameters": (Positions, (nnx.Param,), "subclasses of nnx.Variable of your own"),
    "no class": (Positions, ("Table",), "subclasses of nnx.Variable of your own"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_stay_constant_is_refused(case):
    make, constants, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        whole(make, constants)


def test_what_is_not_assigned_passes_through_transformations():
    assert whole(lambda rngs: Assigning(rngs, "nothing")).init(jax.random.key(0))["embed"]
