"""The decoder against an independent NumPy reference, and its contract with the train step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_jax.models import Context, Decoder, Model, dot_product_attention

from . import reference
from .conftest import BATCH, LENGTH, VOCAB, decoder, random_batch, random_params

SEGMENTS = np.array([[0] * 5 + [1] * 7, [3] * 12, [0] * 1 + [1] * 4 + [2] * 7], np.int32)
POSITIONS = np.array(
    [[*range(5), *range(7)], [*range(12)], [*range(1), *range(4), *range(7)]], np.int32
)


def full_loss(model, params, batch, key=None):
    """The whole model layer by layer, as the train step calls it."""
    keys = [None] * (model.num_layers + 1) if key is None else list(jax.random.split(key, 3))
    x = model.embed(params, batch, Context(keys[-1]))
    for layer in range(model.num_layers):
        layer_params = jax.tree.map(lambda leaf, i=layer: leaf[i], params["blocks"])
        x = model.layer(layer_params, x, batch, Context(keys[layer]))
    return model.head(params, x, batch)["loss"]


def test_a_decoder_is_a_staged_model(style):
    assert isinstance(decoder(style), Model)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_match_the_reference(style, kv_heads):
    model = decoder(style, num_kv_heads=kv_heads)
    params, batch = random_params(model), random_batch()
    expected = [reference.logits(model.config, params, tokens) for tokens in batch["tokens"]]
    np.testing.assert_allclose(model.logits(params, batch), expected, rtol=1e-4, atol=1e-4)


def test_packed_documents_match_the_reference(style):
    model = decoder(style)
    params = random_params(model)
    batch = random_batch() | {"segment_ids": SEGMENTS, "positions": POSITIONS}
    expected = [
        reference.logits(model.config, params, *row)
        for row in zip(batch["tokens"], POSITIONS, SEGMENTS, strict=True)
    ]
    np.testing.assert_allclose(model.logits(params, batch), expected, rtol=1e-4, atol=1e-4)


def test_packed_documents_equal_separate_documents(style):
    model = decoder(style)
    params = random_params(model)
    batch = random_batch() | {"segment_ids": SEGMENTS, "positions": POSITIONS}
    packed = model.logits(params, batch)
    for start, stop in [(0, 5), (5, 12)]:
        alone = model.logits(params, {"tokens": batch["tokens"][:1, start:stop]})
        np.testing.assert_allclose(packed[:1, start:stop], alone, rtol=2e-5, atol=2e-5)


def test_loss_matches_the_reference(style):
    model = decoder(style)
    params, batch = random_params(model), random_batch()
    rows = zip(batch["tokens"], batch["targets"], batch["weights"], strict=True)
    expected = sum(reference.loss(model.config, params, *row) for row in rows)
    np.testing.assert_allclose(full_loss(model, params, batch), expected, rtol=2e-5)
    np.testing.assert_array_equal(model.weights(batch)["loss"], batch["weights"])


def test_one_block_matches_the_reference(style):
    model = decoder(style)
    layer_params = jax.tree.map(lambda leaf: leaf[1], random_params(model)["blocks"])
    x = np.random.default_rng(3).normal(size=(BATCH, LENGTH, 16)).astype("f4")
    y = model.layer(layer_params, x, random_batch())
    positions, segment_ids = np.arange(LENGTH), np.zeros(LENGTH)
    expected = [
        reference.block(model.config, layer_params, row, positions, segment_ids) for row in x
    ]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_gradients_match_finite_differences(style):
    model = decoder(style, num_layers=1)
    params, batch = random_params(model), random_batch(batch=1)
    grads = jax.grad(lambda params: full_loss(model, params, batch))(params)
    rng = np.random.default_rng(5)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)

    def moved(step):
        far = jax.tree.map(lambda p, d: np.float64(p) + step * d, params, direction)
        row = (batch[name][0] for name in ("tokens", "targets", "weights"))
        return reference.loss(model.config, far, *row)

    expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    terms = jax.tree.map(lambda g, d: float(np.sum(np.float64(g) * d)), grads, direction)
    np.testing.assert_allclose(sum(jax.tree.leaves(terms)), expected, rtol=1e-3)


def test_a_tied_table_gets_gradients_from_both_ends():
    model = decoder("gpt2")
    params, batch = random_params(model), random_batch()
    twin = params | {"embed": {**params["embed"]}}

    def loss(embed_table, head_table):
        at_embed = params | {"embed": {**params["embed"], "tokens": embed_table}}
        at_head = twin | {"embed": {**params["embed"], "tokens": head_table}}
        x = model.embed(at_embed, batch)
        for layer in range(model.num_layers):
            x = model.layer(jax.tree.map(lambda p, i=layer: p[i], params["blocks"]), x, batch)
        return model.head(at_head, x, batch)["loss"]

    table = params["embed"]["tokens"]
    lookup, output = jax.grad(loss, argnums=(0, 1))(table, table)
    assert np.abs(lookup).max() > 0 and np.abs(output).max() > 0
    both = jax.grad(lambda p: full_loss(model, p, batch))(params)["embed"]["tokens"]
    np.testing.assert_allclose(both, lookup + output, rtol=1e-4, atol=1e-5)


def test_axes_name_every_dim_of_every_parameter(style):
    model = decoder(style)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    axes = jax.tree.leaves(model.axes(), is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert jax.tree.structure(shapes) == jax.tree.structure(
        model.axes(), is_leaf=lambda leaf: isinstance(leaf, tuple)
    )
    for shape, names in zip(jax.tree.leaves(shapes), axes, strict=True):
        assert len(names) == shape.ndim
    sizes = {"vocab": VOCAB, "embed": 16, "heads": 4, "kv_heads": 2, "head_dim": 6, "mlp": 20}
    sizes |= {"layers": 2, "positions": LENGTH}
    for shape, names in zip(jax.tree.leaves(shapes), axes, strict=True):
        assert shape.shape == tuple(sizes[name] for name in names)


def test_activations_are_constrained_by_name(style):
    model = decoder(style)
    seen = set()

    def record(x, names):
        assert x.ndim == len(names)
        seen.add(names)
        return x

    model.logits(random_params(model), random_batch(), Context(constrain=record))
    assert seen == {
        ("batch", "norm_length", "act_embed"),
        ("batch", "length", "act_heads", None),
        ("batch", "length", "act_kv_heads", None),
        ("batch", "length", "act_mlp"),
        ("batch", "length", "act_vocab"),
    }


def test_initial_parameters_do_not_depend_on_their_sharding(style):
    model = decoder(style, num_layers=4)
    mesh = Mesh(np.array(jax.devices()[:4]), ("stage",))

    def sharding(names):
        spec = PartitionSpec("stage") if names[0] == "layers" else PartitionSpec()
        return NamedSharding(mesh, spec)

    shardings = jax.tree.map(sharding, model.axes(), is_leaf=lambda leaf: isinstance(leaf, tuple))
    sharded = jax.jit(model.init, out_shardings=shardings)(jax.random.key(7))
    whole = model.init(jax.random.key(7))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sharded, whole)


def test_initial_scales_are_those_of_gpt2(style):
    model = decoder(style, embed_dim=64, mlp_dim=128, num_layers=8, vocab_size=500)
    params = model.init(jax.random.key(0))
    assert np.std(params["embed"]["tokens"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(params["blocks"]["mlp"]["up"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    for residual in (params["blocks"]["mlp"]["down"], params["blocks"]["attention"]["o"]):
        assert np.std(residual["kernel"]) == pytest.approx(0.02 / 4, rel=0.05)
    kernels = params["blocks"]["mlp"]["up"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1])


def test_dropout_depends_on_key_and_example_only(style):
    model = decoder(style, dropout=0.4)
    params, batch = random_params(model), random_batch()
    layer_params = jax.tree.map(lambda leaf: leaf[0], params["blocks"])
    x = np.random.default_rng(3).normal(size=(BATCH, LENGTH, 16)).astype("f4")
    key = jax.random.key(11)
    for run in (
        lambda batch, x, key: model.embed(params, batch, Context(key)),
        lambda batch, x, key: model.layer(layer_params, x, batch, Context(key)),
    ):
        whole = run(batch, x, key)
        last = jax.tree.map(lambda leaf: leaf[2:], batch)
        np.testing.assert_allclose(run(last, x[2:], key), whole[2:], rtol=1e-5, atol=1e-5)
        assert not np.allclose(whole, run(batch, x, jax.random.key(12)))
        assert not np.allclose(whole, run(batch, x, None))
        renumbered = batch | {"example": batch["example"] + 1}
        assert not np.allclose(whole, run(renumbered, x, key))


def test_dropout_keeps_the_mean_and_is_off_without_a_key():
    model = decoder("llama", dropout=0.25, embed_dim=64)
    params = jax.tree.map(np.ones_like, random_params(model))
    batch = random_batch(batch=64)
    x = np.asarray(model.embed(params, batch, Context(jax.random.key(0))))
    assert set(np.unique(x)) == {np.float32(0), np.float32(1 / 0.75)}
    assert x.mean() == pytest.approx(1, rel=0.01)
    np.testing.assert_array_equal(model.embed(params, batch), 1)


def test_head_over_slices_adds_up_to_the_whole(style):
    model = decoder(style)
    params, batch = random_params(model), random_batch()
    x = np.random.default_rng(3).normal(size=(BATCH, LENGTH, 16)).astype("f4")
    whole = model.head(params, x, batch)["loss"]
    for dim, cuts in ((0, [1, 2]), (1, [4, 9])):
        pieces = zip(
            *(np.split(leaf, cuts, axis=dim) for leaf in (x, batch["targets"], batch["weights"])),
            strict=True,
        )
        parts = [
            model.head(params, x, {"targets": targets, "weights": weights})["loss"]
            for x, targets, weights in pieces
        ]
        np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


def test_weights_default_to_one(style):
    model = decoder(style)
    params, batch = random_params(model), random_batch()
    ones = full_loss(model, params, batch | {"weights": np.ones((BATCH, LENGTH), "f4")})
    del batch["weights"]
    np.testing.assert_allclose(full_loss(model, params, batch), ones, rtol=1e-6)


def test_the_dtype_of_the_parameters_is_the_dtype_of_compute(style):
    model = decoder(style)
    params, batch = random_params(model), random_batch()
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    assert model.embed(half, batch).dtype == jnp.bfloat16
    assert model.logits(half, batch).dtype == jnp.float32
    loss = full_loss(model, half, batch)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, full_loss(model, params, batch), rtol=0.05)
    grads = jax.grad(lambda params: full_loss(model, params, batch))(half)
    jax.tree.map(lambda g, p: np.testing.assert_equal(g.dtype, p.dtype), grads, half)


def test_attention_is_an_argument():
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return dot_product_attention(*args, **kwargs)

    config = decoder("llama").config
    model = Decoder(config, attention=counted)
    model.logits(random_params(model), random_batch())
    assert calls == [(BATCH, LENGTH, 4, 6)]
