"""Named sums: what is trained on, with coefficients; what is reported; each by its own weight."""

from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import decoder, ragged_batch

from hybrid_jax import Strategy, UserError, check_parity, evaluate, make_mesh, make_train_step
from hybrid_jax.models import Decoder

LAYOUTS = [
    Strategy(data=4, zero=1, microbatches=2),
    Strategy(stage=2, data=2, model=2, microbatches=2),
    Strategy(stage=2, data=2, microbatches=4, schedule="interleaved", chunks=2, zero=3),
    Strategy(stage=4, microbatches=4, schedule="gpipe", remat="stage", skip_bubbles=False),
]


class Balanced(Decoder):
    """A decoder whose layers add a second loss, weighted by the even tokens, in a second array."""

    losses = MappingProxyType({"loss": 1.0, "size": 0.1})

    def weights(self, batch):
        even = (batch["tokens"] % 2).astype(jnp.float32)
        weights = super().weights(batch)["loss"]
        return {"loss": weights, "size": even, "accuracy": weights, "by_dim": weights}

    def embed(self, shared, batch, ctx):
        x = super().embed(shared, batch, ctx)
        return {"x": x, "size": jnp.zeros(x.shape[:2])}

    def layer(self, params, carry, batch, ctx):
        x = super().layer(params, carry["x"], batch, ctx)
        # Depth counts, so that a wrong layer number shows.
        size = (1 + ctx.layer) * jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1)
        return {"x": x, "size": carry["size"] + size}

    def head(self, shared, carry, batch, ctx):
        weights = self.weights(batch)
        logits = self._logits(shared, carry["x"], ctx)
        right = jnp.argmax(logits, axis=-1) == batch["targets"]
        return {
            **super().head(shared, carry["x"], batch, ctx),
            "size": jnp.sum(weights["size"] * carry["size"]),
            "accuracy": jnp.sum(weights["accuracy"] * right),
            "by_dim": jnp.einsum("bt,btd->d", weights["by_dim"], carry["x"]),
        }


def model():
    return Balanced(decoder("llama").config)


def make(strategy, model=None, **options):
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    return make_train_step(model or globals()["model"](), optax.sgd(0.1), strategy, mesh, **options)


@pytest.mark.parametrize("strategy", LAYOUTS, ids=Strategy.describe)
def test_two_losses_have_one_device_gradients(strategy):
    batch = ragged_batch(16)
    check_parity(model(), [strategy], batch=batch, bubble_value=np.nan).raise_if_different()


@pytest.fixture(scope="module")
def expected():
    """Every value on one device."""
    train = make(Strategy(precision="f32"))
    state = train.init(jax.random.key(0))
    metrics = jax.device_get(train.evaluate(state, ragged_batch(16)))
    return jax.device_get(state.params), metrics


@pytest.mark.parametrize("strategy", LAYOUTS, ids=Strategy.describe)
def test_all_sums_are_reported_on_every_layout(strategy, expected):
    params, metrics = expected
    train = make(Strategy(**{**vars(strategy), "precision": "f32"}))
    state = train.init_from(params)
    evaluated = jax.device_get(train.evaluate(state, ragged_batch(16)))
    _, trained = train.step(state, ragged_batch(16))
    for found in (evaluated, jax.device_get(trained)):
        for name, value in metrics.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert metrics["by_dim"].shape == (16,)
    objective = metrics["loss"] + 0.1 * metrics["size"]
    np.testing.assert_allclose(metrics["objective"], objective, rtol=1e-6)


def test_values_are_weighted_over_batches():
    train = make(Strategy(precision="f32"))
    state = train.init(jax.random.key(0))
    whole = ragged_batch(8)
    parts = [{name: leaf[i : i + 2] for name, leaf in whole.items()} for i in range(0, 8, 2)]
    values = evaluate(train, state, parts)
    expected = jax.device_get(train.evaluate(state, whole))
    assert set(values) == {"loss", "size", "accuracy", "by_dim"}
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_the_loss_scale_of_fp16_does_not_change_gradients():
    found = [
        make(Strategy(precision=precision, data=2, microbatches=2)).gradients(
            model().init(jax.random.key(0)), ragged_batch(8), loss_scale=64.0
        )[0]
        for precision in ("f32", "fp16")
    ]
    largest = jax.tree.map(lambda g: np.abs(g).max(), found[0])
    difference = jax.tree.map(lambda a, b, s: np.abs(a - b).max() / s, *found, largest)
    assert max(jax.tree.leaves(difference)) < 0.05


def weights_of(*names):
    return lambda self, batch: dict.fromkeys(names, batch["weights"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"losses": {"size": 1.0}}, "the first must be 'loss'"),
        ({"losses": {"loss": 1.0, "size": 0.0}}, r"losses\['size'\] is 0"),
        ({"losses": {"loss": 1.0, "sise": 1.0}}, "weights returns none for 'sise'"),
        ({"losses": {"loss": 1.0, "by_dim": 1.0}}, r"'by_dim' of shape \[16\]"),
        (
            {"weights": weights_of("loss", "size", "accuracy", "by_dim", "more")},
            "every sum needs a weight",
        ),
        ({"weights": weights_of("loss", "size", "grad_norm")}, "a sum is named 'grad_norm'"),
        (
            {"embed": lambda self, shared, batch, ctx: {"x": batch["tokens"]}},
            r"embed returns a carry with int32\[8, 8\] at \['x'\]",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(wrong, message):
    wrong_model = type("Wrong", (Balanced,), wrong)(decoder("llama").config)
    with pytest.raises(UserError, match=message) as error:
        make(Strategy(), wrong_model).lower((8, 8))
    assert "\n" not in str(error.value)


def test_misspelt_activation_names_are_refused_without_a_model_axis():
    class Misspelt(Decoder):
        def layer(self, params, carry, batch, ctx):
            return ctx.constrain(carry, ("batch", "lenght", None))

    message = r"no rule for logical axis 'lenght'.* Did you mean 'length'"
    with pytest.raises(UserError, match=message):
        make(Strategy(), Misspelt(decoder().config)).lower((8, 8))
