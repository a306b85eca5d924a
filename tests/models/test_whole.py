"""Any module with a loss, NNX and Linen, under replica, data and model axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.models import Context, Model, from_flax
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.train.step import make_train_step

NAMES = (("pixels", "mlp"), ("mlp", None))


class NnxClassifier(nnx.Module):
    """784-128-10, with logical names."""

    def __init__(self, rngs, rate=0.0):
        def dense(n_in, n_out, names):
            metadata = {"out_sharding": names}
            return nnx.Linear(n_in, n_out, kernel_metadata=metadata, rngs=rngs)

        self.hidden, self.out = dense(784, 128, NAMES[0]), dense(128, 10, NAMES[1])
        self.dropout = nnx.Dropout(rate, rngs=rngs) if rate else lambda x: x

    def __call__(self, image):
        return self.out(self.dropout(nnx.relu(self.hidden(image))))


class LinenClassifier(nn.Module):
    """The same in Linen."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, image, deterministic=True):
        def dense(features, names):
            init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), names)
            return nn.Dense(features, kernel_init=init)

        x = nn.relu(dense(128, NAMES[0])(image))
        x = nn.Dropout(self.rate, deterministic=deterministic)(x)
        return dense(10, NAMES[1])(x)


def classifiers(rate=0.0):
    return {
        "nnx": lambda rngs: NnxClassifier(rngs, rate),
        "linen": LinenClassifier(rate),
    }


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def images(size=6):
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(size, 784)).astype("f4"),
        "label": rng.integers(0, 10, size).astype("i4"),
        "weights": rng.uniform(size=size).astype("f4"),
        "example": np.arange(size, dtype="i4"),
    }


def classifier(library, rate=0.0):
    return from_flax(classifiers(rate)[library], cross_entropy, images(), inputs=["image"])


def numpy_loss(params, batch):
    """Weighted cross entropy of the classifier, from its parameters in order of depth."""
    kernels = {leaf.shape: np.asarray(leaf) for leaf in jax.tree.leaves(params)}
    hidden = np.maximum(batch["image"] @ kernels[784, 128] + kernels[128,], 0)
    scores = hidden @ kernels[128, 10] + kernels[10,]
    chosen = scores[np.arange(len(scores)), batch["label"]]
    return np.sum(batch["weights"] * (np.log(np.exp(scores).sum(axis=1)) - chosen))


@pytest.fixture(params=["nnx", "linen"])
def library(request):
    """Both of Flax's APIs."""
    return request.param


def test_a_classifier_computes_its_weighted_loss(library):
    model, batch = classifier(library), images()
    params = model.init(jax.random.key(0))
    assert isinstance(model, Model)
    assert model.num_layers == 0 and params["blocks"] == {} and params["head"] == {}
    np.testing.assert_allclose(model.loss(params, batch), numpy_loss(params, batch), rtol=1e-4)
    np.testing.assert_array_equal(model.weights(batch)["loss"], batch["weights"])


def test_the_parts_of_a_whole_model_split_over_examples(library):
    model, batch = classifier(library), images()
    params = model.init(jax.random.key(0))
    x = model.embed(params, batch)
    assert (x.shape, x.dtype) == ((6, 1), jnp.float32)
    sums = [model.head(params, piece, batch)["loss"] for piece in np.split(x, 3)]
    np.testing.assert_allclose(sum(sums), model.loss(params, batch), rtol=1e-5)


def test_names_come_from_the_metadata_and_default_to_none(library):
    model = classifier(library)
    params = jax.eval_shape(model.init, jax.random.key(0))
    axes = model.axes()
    found = {}

    def note(shape, names):
        assert len(names) == shape.ndim
        found[shape.shape] = names

    jax.tree.map(note, params, axes)
    assert found == {
        (784, 128): NAMES[0],
        (128,): (None,),
        (128, 10): NAMES[1],
        (10,): (None,),
    }


def test_a_classifier_learns(library):
    model, batch = classifier(library, rate=0.1), images()
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, opt_state, key):
        loss = lambda params: model.loss(params, batch, Context(key))
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    params = model.init(jax.random.key(0))
    opt_state, before = tx.init(params), float(model.loss(params, batch))
    for key in jax.random.split(jax.random.key(1), 20):
        params, opt_state = step(params, opt_state, key)
    assert float(model.loss(params, batch)) < 0.1 * before


def test_dropout_depends_on_key_and_example_only(library):
    model, batch = classifier(library, rate=0.5), images()
    params, key = model.init(jax.random.key(0)), jax.random.key(3)
    whole = model.embed(params, batch, Context(key))
    last = model.embed(params, jax.tree.map(lambda leaf: leaf[4:], batch), Context(key))
    np.testing.assert_allclose(last, whole[4:], rtol=1e-5)
    np.testing.assert_array_equal(whole, model.embed(params, batch, Context(key)))
    assert not np.allclose(whole, model.embed(params, batch, Context(jax.random.key(4))))
    np.testing.assert_allclose(
        model.embed(params, batch).sum(), numpy_loss(params, batch), rtol=1e-4
    )


class NnxBatchNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(784, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


class LinenBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train)(x)


@pytest.mark.parametrize("module", [NnxBatchNorm, LinenBatchNorm()], ids=["nnx", "linen"])
def test_batch_statistics_are_refused(module):
    with pytest.raises(UserError, match=r"BatchNorm holds state .* use LayerNorm"):
        from_flax(module, cross_entropy, images(), inputs=["image"])


def test_mistakes_are_told_with_their_remedy(library):
    module = classifiers()[library]
    with pytest.raises(UserError, match=r"'imag' is not in the batch.*Did you mean 'image'"):
        from_flax(module, cross_entropy, images(), inputs=["imag"])
    with pytest.raises(UserError, match=r"shape \(\) for a batch of 6 examples"):
        mean = lambda logits, batch: cross_entropy(logits, batch).mean()
        from_flax(module, mean, images(), inputs=["image"])
    with pytest.raises(UserError, match="already built"):
        from_flax(nnx.Linear(784, 10, rngs=nnx.Rngs(0)), cross_entropy, images(), inputs=["image"])
    model = classifier(library)
    batch = images() | {"weights": np.ones((6, 2), "f4")}
    with pytest.raises(UserError, match=r"batch\['weights'\] has \(6, 2\)"):
        model.loss(model.init(jax.random.key(0)), batch)


@pytest.mark.parametrize(
    "layout",
    [
        {"data": 2, "model": 2, "rules": (("pixels", None), ("mlp", "model"))},
        {"replica": 2, "data": 2, "microbatches": 2, "zero": 3},
    ],
    ids=["data x model", "zero 3"],
)
def test_the_train_step_computes_one_device_gradients(library, layout):
    replicated = (("pixels", None), ("mlp", None))
    strategy = Strategy(**{"precision": "f32", "rules": replicated, **layout})
    mesh = make_mesh(strategy, devices=jax.devices()[: strategy.num_devices])
    model, batch = classifier(library), images(8)
    params = model.init(jax.random.key(0))

    def mean_loss(params):
        return model.loss(params, batch) / model.weights(batch)["loss"].sum()

    del batch["example"]
    train = make_train_step(model, optax.sgd(0.1), strategy, mesh)
    grads, _ = train.gradients(params, batch)
    expected = jax.grad(mean_loss)(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected
    )
