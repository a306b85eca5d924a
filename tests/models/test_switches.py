"""Dropout is on in training and off in evaluation, however a module is told, or it is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from hybrid_jax.errors import UserError
from hybrid_jax.models import Context, from_flax, from_parts

BATCH = {"x": np.ones((4, 5, 6), np.float32)}


def first_feature(output, batch):
    return output[..., 0]


def model(module, **options):
    return from_flax(module, first_feature, BATCH, inputs=["x"], **options)


def parts(embed, block, head, **options):
    return from_parts(
        embed, block, head, first_feature, BATCH, num_layers=2, inputs=["x"], **options
    )


class Parameter(nn.Module):
    """Told by a parameter of its call that is true in training."""

    rate: float = 0.5
    stream: str = "dropout"

    @nn.compact
    def __call__(self, x, is_training=False):
        dropout = nn.Dropout(self.rate, rng_collection=self.stream)
        return dropout(nn.Dense(6)(x), deterministic=not is_training)


class Required(nn.Module):
    """Told by a parameter without a default."""

    @nn.compact
    def __call__(self, x, is_training):
        return Parameter()(x, is_training)


class Attribute(nn.Module):
    """Told by an attribute that is false in training."""

    frozen: bool = True

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=self.frozen)(nn.Dense(6)(x))


class Attention(nn.Module):
    """The dropout of attention weights."""

    @nn.compact
    def __call__(self, x, is_training=False):
        attention = nn.MultiHeadDotProductAttention(2, dropout_rate=0.5)
        return attention(x, deterministic=not is_training)


class Rematerialised(nn.Module):
    """Dropout inside a lifted transformation."""

    @nn.compact
    def __call__(self, x, is_training=False):
        return nn.remat(Parameter, static_argnums=(2,))()(x, is_training)


class Nnx(nnx.Module):
    """In NNX, where `train()` and `eval()` reach layers, but no attribute of one's own."""

    def __init__(self, rngs):
        self.dense, self.dropout = nnx.Linear(6, 6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.is_training = False

    @nnx.remat
    def __call__(self, x):
        return self.dropout(self.dense(x), deterministic=not self.is_training)


class NnxAttention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 6, dropout_rate=0.5, decode=False, rngs=rngs)

    def __call__(self, x, is_training=False):
        return self.attention(x, deterministic=not is_training)


TOLD = {
    "parameter": (Parameter(), {"is_training": True}),
    "attribute": (Attribute(), {"frozen": False}),
    "attention": (Attention(), {"is_training": True}),
    "remat": (Rematerialised(), {"is_training": True}),
    "nnx": (Nnx, {"is_training": True}),
    "nnx attention": (NnxAttention, {"is_training": True}),
}


@pytest.mark.parametrize("case", TOLD)
def test_dropout_that_stays_off_in_training_is_refused(case):
    module, switches = TOLD[case]
    with pytest.raises(UserError, match=r"would train without dropout: .* \(rate 0.5\)") as error:
        model(module)
    # What the message proposes is what the module needs.
    assert f"switches={switches}" in str(error.value)


def losses(model, key=None):
    params = model.init(jax.random.key(0))
    batch = {**BATCH, "example": np.arange(4)}
    return model.embed(params, batch, Context(key))


def assert_random_in_training_only(model):
    first, second = (losses(model, jax.random.key(key)) for key in (1, 2))
    evaluated = losses(model)
    assert not np.allclose(first, second) and not np.allclose(first, evaluated)
    np.testing.assert_array_equal(evaluated, losses(model))
    # Equal examples, but a mask for each.
    assert len(np.unique(first)) > 1 == len(np.unique(evaluated))


@pytest.mark.parametrize("case", TOLD)
def test_a_named_switch_turns_dropout_on(case):
    module, switches = TOLD[case]
    assert_random_in_training_only(model(module, switches=switches))


class UsualAttribute(nn.Module):
    deterministic: bool = True

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=self.deterministic)(nn.Dense(6)(x))


class UsualNnxParameter(Nnx):
    def __call__(self, x, deterministic=True):
        return self.dropout(self.dense(x), deterministic=deterministic)


class OtherStream(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return Parameter(stream="paths")(x, train)


@pytest.mark.parametrize("module", [UsualAttribute(), UsualNnxParameter, OtherStream()])
def test_usual_switches_need_no_name(module):
    assert_random_in_training_only(model(module))


class Always(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(6)(x))


class NnxAlways(Nnx):
    def __call__(self, x):
        return self.dropout(self.dense(x), deterministic=False)


@pytest.mark.parametrize("module", [Always(), NnxAlways])
def test_dropout_in_evaluation_is_refused(module):
    with pytest.raises(UserError, match=r"random numbers in evaluation mode too \(.*rate 0.5\)"):
        model(module)


def test_a_rate_of_zero_needs_no_switch():
    assert losses(model(Parameter(rate=0.0)), jax.random.key(1)).shape == (4, 1)


class Doubled(nn.Module):
    """In training mode another function, but not a random one."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(6)(x) * (2 if train else 1)


def test_training_mode_reaches_modules_that_draw_nothing():
    doubled = model(Doubled())
    np.testing.assert_allclose(losses(doubled, jax.random.key(1)), 2 * losses(doubled), rtol=1e-6)


def test_each_part_takes_its_own_switches():
    switches = {"is_training": True, "frozen": False}
    staged = parts(Attribute(), Parameter(), nn.Dense(6), switches=switches)
    params, batch = staged.init(jax.random.key(0)), {**BATCH, "example": np.arange(4)}
    layer = jax.tree.map(lambda leaf: leaf[0], params["blocks"])
    for call in (
        lambda key: staged.embed(params, batch, Context(key)),
        lambda key: staged.layer(layer, jnp.ones((4, 5, 6)), batch, Context(key)),
    ):
        assert not np.allclose(call(jax.random.key(1)), call(None))
    with pytest.raises(UserError, match="Attribute would train without dropout"):
        parts(Attribute(), Parameter(), nn.Dense(6), switches={"is_training": True})


def test_dropout_in_the_head_is_refused():
    with pytest.raises(UserError, match="a head runs without: move its dropout"):
        parts(nn.Dense(6), nn.Dense(6), Parameter(), switches={"is_training": True})


WRONG = {
    "a name nobody has": ({"train_mode": True}, r"\['train_mode'\].*neither a parameter"),
    "a misspelt name": ({"trian": True}, r"\['trian'\].*Did you mean 'train'"),
    "a number": ({"is_training": 1}, "must be True or False"),
    "a name alone": ("is_training", "must map names to their value in training mode"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_switches_are_refused(case):
    switches, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        model(OtherStream(), switches=switches)


@pytest.mark.parametrize(
    ("module", "options"),
    [(Required(), {}), (nn.Dense(6), {"inputs": ["x", "x"]}), (nn.Dense(6), {"inputs": []})],
)
def test_a_call_that_does_not_take_the_inputs_is_refused(module, options):
    with pytest.raises(UserError, match=r"the call of \w+ takes \(.*\), but gets"):
        from_flax(module, first_feature, BATCH, **{"inputs": ["x"], **options})
