"""The locator of what is not finite: single values poisoned on every kind of layout."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import decoder, plain_batch

import hybrid_jax as hj
from hybrid_jax import Strategy, make_mesh, make_train_step
from hybrid_jax.models.probed import Probed
from hybrid_jax.nonfinite import Locator

SIZE = 8
LAYOUTS = [
    Strategy(microbatches=2),
    Strategy(data=2, model=2, microbatches=2, zero=3),
    Strategy(stage=2, data=2, microbatches=2, remat="none"),
    Strategy(stage=2, data=2, microbatches=2, schedule="interleaved", chunks=2),
    Strategy(stage=4, microbatches=4, schedule="gpipe", remat="stage", skip_bubbles=False),
]  # fmt: skip
LAYOUTS = [replace(strategy, precision="f32") for strategy in LAYOUTS]


class Poisoned(Probed):
    """A decoder of which single examples go bad in single layers: as its parameter "probe" says.

    1 in column 0 poisons the layer's output, in column 1 the gradient with respect to its input.
    """

    def layer(self, params, x, batch, ctx):
        marks = params["probe"][batch["example"]]
        x = _poison_gradient(x, marks[:, 1])
        y = self.model.layer(params["model"], x, batch, ctx)
        return jnp.where(jax.lax.stop_gradient(marks[:, 0, None, None]) > 0, jnp.nan, y)

    def embed(self, shared, batch, ctx):
        x = self.model.embed(_model(shared), batch, ctx)
        mark = jax.lax.stop_gradient(shared["embed"]["probe"][batch["example"], 0])
        return jnp.where(mark[:, None, None] > 0, jnp.inf, x)

    def head(self, shared, x, batch, ctx):
        return self.model.head(_model(shared), x, batch, ctx)


def _model(shared):
    return {**shared, "embed": shared["embed"]["model"]}


@jax.custom_vjp
def _poison_gradient(x, marks):
    return x


_poison_gradient.defvjp(
    lambda x, marks: (x, marks),
    lambda marks, dy: (jnp.where(marks[:, None, None] > 0, jnp.nan, dy), jnp.zeros_like(marks)),
)


def train_on(strategy, model):
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    return make_train_step(model, optax.sgd(1e-3), strategy, mesh)


@pytest.fixture(scope="module", params=LAYOUTS, ids=Strategy.describe)
def locator(request):
    return Locator(train_on(request.param, Poisoned(decoder(), SIZE)))


@pytest.fixture
def train(locator):
    return locator.train


def marked(train, change):
    """A state whose canonical parameters have been changed in one place."""
    params = train.canonical_params(train.init(jax.random.key(0)))
    params = jax.tree.map(np.array, params)
    change(params)
    return train.init_from(params)


def microbatch(strategy, example):
    local = SIZE // (strategy.replica * strategy.data)
    return example % local // (local // strategy.microbatches)


def test_nothing_is_found_in_a_good_step(locator, train):
    state = train.init(jax.random.key(0))
    assert locator.locate(state, plain_batch(SIZE)) is None
    assert not state.step.is_deleted()


@pytest.mark.parametrize(("column", "kind"), [(0, "forward"), (1, "gradient")])
@pytest.mark.parametrize(("layer", "example"), [(2, 5), (3, 0), (0, 6)])
def test_a_poisoned_layer_and_example_are_found(locator, train, column, kind, layer, example):
    def poison(params):
        params["blocks"]["probe"][layer, example, column] = 1

    found = locator.locate(marked(train, poison), plain_batch(SIZE))
    assert (found.kind, found.examples) == (kind, (example,))
    # The gradient with respect to a layer's input is that of the output of the one before.
    assert found.layer == (layer if kind == "forward" else layer - 1 if layer else None)
    assert found.microbatch == microbatch(train.strategy, example)
    assert np.isfinite(found.loss) == (kind == "gradient")
    assert "\n" not in str(found)


def test_the_embedding_comes_before_layers(locator, train):
    def poison(params):
        params["embed"]["probe"][3, 0] = 1
        params["blocks"]["probe"][1, 6, 0] = 1

    found = locator.locate(marked(train, poison), plain_batch(SIZE))
    assert (found.kind, found.array, found.examples) == ("forward", "the embedding", (3,))


def test_a_parameter_is_named_with_its_layer(locator, train):
    def poison(params):
        params["blocks"]["model"]["mlp"]["up"]["kernel"][3, 2, 1] = np.inf

    found = locator.locate(marked(train, poison), plain_batch(SIZE))
    assert (found.kind, found.array, found.layer) == (
        "parameter",
        "blocks/model/mlp/up/kernel",
        3,
    )


def test_the_head_is_named():
    """A last norm so large that the logits of one document overflow, and nothing before them."""
    train = train_on(Strategy(data=2, stage=2, microbatches=2, precision="f32"), decoder())

    def poison(params):
        params["head"]["kernel"][:] = 3e38

    found = hj.locate_nonfinite(train, marked(train, poison), plain_batch(SIZE))
    assert (found.kind, found.array) == ("forward", "the head")


def test_a_product_of_finite_gradients_may_overflow():
    """In f16 a weight's gradient can be too large where all that it is made of is not."""
    train = train_on(Strategy(precision="fp16"), decoder(num_layers=1))
    state = train.init(jax.random.key(0))
    batch = {**plain_batch(SIZE), "weights": np.full((SIZE, 8), 30.0, np.float32)}
    found = hj.locate_nonfinite(train, state, batch, loss_scale=2.0**11)
    assert found.kind in ("gradient", "parameter gradient")


def test_the_masks_are_those_of_the_step():
    """With dropout the rerun is of the same update: its loss is the step's."""
    train = train_on(Strategy(data=2, precision="f32"), Poisoned(decoder(dropout=0.3), SIZE))

    def poison(params):
        params["blocks"]["probe"][1, 4, 1] = 1

    state, batch = marked(train, poison), plain_batch(SIZE)
    found = hj.locate_nonfinite(train, state, batch)
    skipped, metrics = train.step(state, batch)
    assert int(metrics["skipped"]) == 1
    np.testing.assert_allclose(found.loss, metrics["loss"], rtol=1e-6)
    again = hj.locate_nonfinite(train, skipped, batch, step=0)
    np.testing.assert_allclose(again.loss, found.loss, rtol=1e-6)
    later = hj.locate_nonfinite(train, skipped, batch)
    assert abs(later.loss - found.loss) > 1e-4
