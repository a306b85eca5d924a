"""Three modules, NNX and Linen, as a model that pipelines."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.models import Context, Model, from_parts
from hybrid_jax.parity import check_parity
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.train.step import make_train_step

VOCAB, LENGTH, DIM = 13, 5, 8


class Embed(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
        return nn.Embed(VOCAB, DIM, embedding_init=init)(tokens)


class Block(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, segment_ids, deterministic=True):
        mask = nn.combine_masks(
            nn.make_causal_mask(segment_ids),
            nn.make_attention_mask(segment_ids, segment_ids, jnp.equal),
        )
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x), mask=mask)
        y = nn.Dense(DIM)(nn.gelu(nn.Dense(3 * DIM)(nn.LayerNorm()(x))))
        return x + nn.Dropout(self.rate, deterministic=deterministic)(y)


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(VOCAB)(nn.LayerNorm()(x))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return x + nnx.tanh(self.dense(x))


def documents(size=4):
    rng = np.random.default_rng(1)
    return {
        "tokens": rng.integers(0, VOCAB, (size, LENGTH)).astype("i4"),
        "targets": rng.integers(0, VOCAB, (size, LENGTH)).astype("i4"),
        "weights": rng.uniform(size=(size, LENGTH)).astype("f4"),
        "segment_ids": np.repeat([[0, 0, 1, 1, 1]], size, axis=0).astype("i4"),
        "example": np.arange(size, dtype="i4"),
    }


def token_loss(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])


def transformer(block=None, block_inputs=("segment_ids",), num_layers=3, loss=None, **options):
    return from_parts(
        Embed(),
        Block() if block is None else block,
        Head(),
        loss or token_loss,
        options.pop("example_batch", documents()),
        num_layers=num_layers,
        inputs=["tokens"],
        block_inputs=block_inputs,
        **options,
    )


def run(model, params, batch, keys=(None,) * 4):
    x = model.embed(params, batch, Context(keys[-1]))
    for layer in range(model.num_layers):
        layer_params = jax.tree.map(lambda leaf, i=layer: leaf[i], params["blocks"])
        x = model.layer(layer_params, x, batch, Context(keys[layer]))
    return model.head(params, x, batch)["loss"]


def test_a_linen_transformer_in_parts_equals_its_modules_in_sequence():
    model, batch = transformer(), documents()
    params = model.init(jax.random.key(0))
    assert isinstance(model, Model)

    def sequential(params):
        x = Embed().apply({"params": params["embed"]}, batch["tokens"])
        for layer in range(3):
            layer_params = jax.tree.map(lambda leaf, i=layer: leaf[i], params["blocks"])
            x = Block().apply({"params": layer_params}, x, batch["segment_ids"])
        logits = Head().apply({"params": params["head"]}, x)
        return jnp.sum(batch["weights"] * token_loss(logits, batch))

    staged = jax.jit(jax.value_and_grad(lambda params: run(model, params, batch)))
    loss, grads = staged(params)
    expected_loss, expected_grads = jax.jit(jax.value_and_grad(sequential))(params)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected_grads
    )


def test_blocks_are_stacked_named_and_different():
    model = transformer()
    params, axes = model.init(jax.random.key(0)), model.axes()
    kernel = params["blocks"]["Dense_0"]["kernel"]
    assert kernel.shape == (3, 3 * DIM, DIM) and not np.allclose(kernel[0], kernel[1])
    assert axes["blocks"]["Dense_0"]["kernel"] == ("layers", None, None)
    assert axes["embed"]["Embed_0"]["embedding"] == ("vocab", "embed")


def test_dropout_in_a_block_is_a_function_of_key_and_example():
    model, batch = transformer(Block(rate=0.5)), documents()
    params = model.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4)
    halves = [jax.tree.map(lambda leaf, s=s: leaf[s], batch) for s in (slice(0, 2), slice(2, 4))]
    step = jax.jit(lambda batch, keys: run(model, params, batch, keys))
    sums = [step(half, keys) for half in halves]
    whole = step(batch, keys)
    np.testing.assert_allclose(sum(sums), whole, rtol=1e-5)
    assert not np.allclose(whole, run(model, params, batch))


def test_linen_and_nnx_parts_mix():
    model, batch = transformer(NnxBlock, block_inputs=()), documents()
    params = model.init(jax.random.key(0))
    assert params["blocks"]["dense"]["kernel"].shape == (3, DIM, DIM)
    assert np.isfinite(run(model, params, batch))


def test_a_block_must_return_what_it_is_given():
    with pytest.raises(UserError, match=r"block maps float32\[4, 5, 8\] to float32\[4, 5, 13\]"):
        transformer(Head(), block_inputs=())


@pytest.mark.parametrize(
    "layout",
    [
        {"stage": 2, "data": 2, "microbatches": 2},
        {"stage": 2, "microbatches": 4, "schedule": "interleaved", "chunks": 2},
    ],
    ids=["1f1b", "interleaved"],
)
def test_a_pipeline_trains_it_like_one_device(layout):
    model, batch = transformer(Block(rate=0.3), num_layers=4), documents(8)
    del batch["example"]

    def losses(**layout):
        strategy = Strategy(precision="f32", **layout)
        mesh = make_mesh(strategy, devices=jax.devices()[: strategy.num_devices])
        train = make_train_step(model, optax.adam(1e-2), strategy, mesh, seed=5)
        state = train.init(jax.random.key(0))
        for _ in range(2):
            state, metrics = train.step(state, batch)
            yield float(metrics["loss"])

    np.testing.assert_allclose(list(losses(**layout)), list(losses()), rtol=1e-5)


def test_a_head_that_is_split_along_the_length_gets_slices_of_tokens_only():
    batch = {**documents(2), "scale": np.arange(6, dtype="f4").reshape(2, 3)}
    del batch["example"]
    loss = lambda logits, batch: token_loss(logits, batch) * batch["scale"].sum(axis=1)[:, None]
    dims = ("batch", "length")
    model = transformer(num_layers=4, loss=loss, example_batch=batch, head_dims=dims)
    entries = model.batch_entries().entries
    assert entries["targets"].axes == entries["weights"].axes == dims
    assert entries["scale"].axes == ("batch", None)
    strategy = Strategy(stage=4, microbatches=2)  # one row of 5 tokens a microbatch: it is padded
    check_parity(model, [strategy], batch=batch, devices=jax.devices()[:4]).raise_if_different()
