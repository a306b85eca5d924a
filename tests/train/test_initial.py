"""A run begins with given parameters only if they are the model's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze
from tiny import decoder

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.models import from_flax
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.train.step import make_train_step

BATCH = {"x": np.random.default_rng(0).normal(size=(4, 16)).astype("f4")}


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        return self.layers[1](self.layers[0](x))


def step(model, devices=2, **strategy):
    strategy = Strategy(data=devices, precision="f32", **strategy)
    return make_train_step(
        model, optax.sgd(0.1), strategy, make_mesh(strategy, jax.devices()[:devices])
    )


def small():
    squares = lambda output, batch: jnp.sum(output**2, axis=-1)
    return step(from_flax(Net, squares, BATCH, inputs=["x"]))


def arrays(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype("f4"), shapes)


def decoder_shapes():
    return jax.eval_shape(decoder().init, jax.random.key(0))


def changed(path, change):
    """A decoder's parameters with one array put through `change`; None leaves it out."""
    *parents, name = path.split("/")
    params = node = arrays(decoder_shapes())
    for parent in parents:
        node = node[parent]
    array = node.pop(name)
    node |= change(array) if isinstance(change(array), dict) else {name: change(array)}
    return params


QUERY = "blocks/attention/q/kernel"
REFUSED = {
    "fewer layers": (
        lambda: changed(QUERY, lambda q: q[:3]),
        r"has shape \[3, .*model's has \[4, ",
    ),
    "more layers": (lambda: changed(QUERY, lambda q: np.concatenate([q, q])), r"has shape \[8, "),
    "transposed": (
        lambda: changed("head/kernel", np.transpose),
        r"kernel has shape \[64, 16\]",
    ),
    "another name": (
        lambda: changed("embed/tokens", lambda table: {"token": table}),
        "lack embed/tokens, but have embed/token: .*Did you mean 'embed/token'",
    ),
    "missing": (lambda: changed("embed/tokens", lambda table: {}), "lack embed/tokens: name them"),
    "more": (
        lambda: changed("head/kernel", lambda x: {"kernel": x, "bias": x[0]}),
        "have head/bias, which the model does not have",
    ),
    "a part alone": (lambda: arrays(decoder_shapes())["embed"], "lack blocks/attention/k"),
    "integers": (lambda: changed(QUERY, lambda q: q.astype(int)), "is int64, which float32"),
    "doubles": (lambda: changed(QUERY, lambda q: q.astype(float)), "is float64, which float32"),
    "complex": (lambda: changed(QUERY, lambda q: q.astype(complex)), "is complex128"),
    "None": (lambda: changed(QUERY, lambda q: None), "q/kernel is a NoneType, not an array"),
    "text": (lambda: changed(QUERY, lambda q: "zeros"), "q/kernel is a str, not an array"),
    "a list": (lambda: changed("embed/tokens", lambda q: q.tolist()), "lack embed/tokens"),
    "shapes": (decoder_shapes, "is a ShapeDtypeStruct, not an array"),
    "no tree": (lambda: np.ones(3), "lack blocks/attention/k"),
}


@pytest.fixture(scope="module")
def decoder_step():
    return step(decoder(), devices=1)


@pytest.mark.parametrize("case", REFUSED)
def test_parameters_of_another_model_are_refused(decoder_step, case):
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as error:
        decoder_step.init_from(make())
    assert "\n" not in str(error.value)


def test_a_model_of_three_layers_is_no_model_of_four(decoder_step):
    shapes = jax.eval_shape(decoder(num_layers=3).init, jax.random.key(0))
    with pytest.raises(UserError, match=r"has shape \[3, .*belong to another model"):
        decoder_step.init_from(arrays(shapes))


def test_a_state_and_arrays_that_are_gone_are_refused():
    train = small()
    state = train.init(jax.random.key(0))
    with pytest.raises(UserError, match=r"give it train.canonical_params\(state\)"):
        train.init_from(state)
    params = train.canonical_params(state)
    train.init_from(params)
    with pytest.raises(UserError, match="is gone, since it was donated"):
        train.init_from(params)


def test_every_kind_of_tree_and_float_gives_float32_masters():
    """bf16 numbers are kept exactly; NumPy arrays are not written to by the steps that follow."""
    train = small()
    whole = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays(train.shapes))
    expected = jax.tree.map(lambda x: x.astype(np.float32), whole)
    module = Net(nnx.Rngs(0))
    state = nnx.state(module)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, whole["embed"]))
    boxed = jax.tree.map(lambda x: nn.Partitioned(jnp.asarray(x), (None,) * x.ndim), whole)
    given = {
        "NumPy bf16": whole,
        "NumPy float32": expected,
        "JAX": jax.tree.map(jnp.asarray, whole),
        "on one device": jax.device_put(expected, jax.devices()[3]),
        "frozen": freeze(whole),
        "NNX": {"embed": state, "blocks": {}, "head": {}},
        "boxed": boxed,
    }
    for kind, params in given.items():
        kept = jax.tree.map(np.copy, params) if "NumPy" in kind else None
        state = train.init_from(params)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), expected)
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        train.check_state(state)
        train.step(state, BATCH)
        if kept is not None:
            jax.tree.map(np.testing.assert_array_equal, params, kept)


def test_one_array_may_stand_in_two_places():
    train = small()
    kernel, bias = jnp.eye(16), jnp.zeros(16)
    layer = {"kernel": kernel, "bias": bias}
    state = train.init_from({"embed": {"layers": {0: layer, 1: layer}}, "blocks": {}, "head": {}})
    jax.tree.map(np.testing.assert_array_equal, *state.params["embed"]["layers"].values())
    train.step(state, BATCH)
