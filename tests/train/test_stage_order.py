"""The order of layers: every group arrives, nothing is gathered, optimizer state moves along."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny import decoder, plain_batch

from hybrid_jax import Strategy, UserError, make_mesh, make_train_step
from hybrid_jax.analysis.ledger import ledger
from hybrid_jax.train.stage_order import (
    NO_LAYERS,
    LayerOrder,
    depth_of_slot,
    exchange_rounds,
    layer_dims,
)

SIZES = [(2, 2), (2, 3), (4, 3), (4, 2), (8, 5), (3, 4)]


@pytest.mark.parametrize(("stages", "chunks"), SIZES)
def test_a_stage_owns_every_s_th_group(stages, chunks):
    by_stage = depth_of_slot(stages, chunks).reshape(stages, chunks)
    for stage in range(stages):
        assert by_stage[stage].tolist() == [c * stages + stage for c in range(chunks)]


@pytest.mark.parametrize(("stages", "chunks"), SIZES)
def test_in_a_round_every_stage_sends_and_receives_one(stages, chunks):
    for source in (depth_of_slot(stages, chunks), np.argsort(depth_of_slot(stages, chunks))):
        rounds = exchange_rounds(source, stages)
        assert len(rounds) == chunks
        assert sorted(np.concatenate(rounds).tolist()) == list(range(stages * chunks))
        for slots in rounds:
            assert (slots // chunks).tolist() == list(range(stages))
            assert sorted(source[slots] // chunks) == list(range(stages))


@pytest.mark.parametrize("spec", [("stage", "data"), (None, "data"), (None, "stage")])
@pytest.mark.parametrize(("stages", "chunks"), [(2, 3), (4, 3)])
def test_there_and_back(stages, chunks, spec):
    strategy = Strategy(
        stage=stages, data=8 // stages, schedule="interleaved", chunks=chunks, microbatches=stages
    )
    mesh = make_mesh(strategy)
    layers = 2 * stages * chunks
    leaf = np.arange(layers * 8.0).reshape(layers, 8)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    order = LayerOrder(mesh, chunks, 0, sharding)
    moved = jax.jit(order.to_stages, out_shardings=sharding)(jax.device_put(leaf, sharding))
    expected = leaf.reshape(stages * chunks, 2, 8)[depth_of_slot(stages, chunks)]
    np.testing.assert_array_equal(moved, expected.reshape(layers, 8))
    back = jax.jit(order.to_depth, out_shardings=sharding)(moved)
    np.testing.assert_array_equal(back, leaf)


@pytest.mark.parametrize("chunks", [2, 3])
def test_layers_move_without_being_gathered(chunks):
    strategy = Strategy(stage=4, data=2, microbatches=4, schedule="interleaved", chunks=chunks)
    train = make_train_step(
        decoder(num_layers=24), optax.adamw(1e-3), strategy, make_mesh(strategy)
    )
    compiled = train._functions.to_depth.lower(train.abstract_state()).compile()
    kinds = {row.kind for row in ledger(compiled.as_text(), train.mesh).rows}
    assert kinds == {"collective-permute"}


def test_the_optimizer_state_moves_like_its_parameters():
    """Updates of an interleaved layout, in canonical order, equal those of one stage."""
    tx = optax.adamw(1e-2)
    states = []
    for strategy in (
        Strategy(precision="f32"),
        Strategy(
            stage=2, data=2, microbatches=2, schedule="interleaved", chunks=2, precision="f32"
        ),
    ):
        mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
        train = make_train_step(decoder(), tx, strategy, mesh)
        state = train.init(jax.random.key(0))
        for seed in range(2):
            state, _ = train.step(state, plain_batch(seed=seed))
        canonical = train.canonical_state(state)
        states.append(jax.device_get(canonical))
        again = train.canonical_state(train.from_canonical(canonical))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), states[-1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *states)


@pytest.mark.parametrize("tx", [optax.adamw(1e-3), optax.adafactor(1e-3), optax.sgd(1e-2)])
def test_layer_dims_follow_the_layers_even_where_widths_are_as_many(tx):
    """Four layers of width 4: the first dim is not always the layers'."""
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    shapes = {"embed": f32(4, 4), "blocks": {"kernel": f32(4, 4, 4), "scale": f32(4, 4)}}
    dims = layer_dims(lambda params: {"params": params, "opt": tx.init(params)}, shapes)
    assert dims["params"] == {"embed": NO_LAYERS, "blocks": {"kernel": 0, "scale": 0}}
    for path, dim in jax.tree_util.tree_leaves_with_path(dims["opt"]):
        name = jax.tree_util.keystr(path)
        if "mu" in name or "nu" in name:
            assert dim == (0 if "blocks" in name else NO_LAYERS), name


def test_a_state_whose_layers_cannot_be_told_apart_is_refused():
    shapes = {"blocks": jax.ShapeDtypeStruct((4, 2), jnp.float32)}
    square = lambda params: jnp.zeros((params["blocks"].shape[0],) * 2)
    with pytest.raises(UserError, match="one layer more"):
        layer_dims(square, shapes)
