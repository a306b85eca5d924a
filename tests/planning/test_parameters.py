"""Counted parameters against the state that the train step would build."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import optax
import pytest
from tiny import decoder

import hybrid_jax as hj
from hybrid_jax.config.model import num_params
from hybrid_jax.planning.parameters import (
    block_leaves,
    entries,
    gathered,
    shard_of,
    shared_leaves,
    stored,
)

LAYOUTS = [
    {"stage": stage, "data": data, "model": model, "replica": 8 // (stage * data * model)}
    for stage, data, model in itertools.product((1, 2, 4), repeat=3)
    if 8 % (stage * data * model) == 0 and model < 4
]


def device_bytes(tree) -> int:
    """Bytes of one device's share of abstract arrays."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize("zero", [0, 1, 3])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_bytes_are_those_of_the_state(style, layout, zero):
    strategy = hj.Strategy(**layout, zero=zero)
    model = decoder(style)
    train = hj.make_train_step(model, optax.adamw(1e-3), strategy, hj.make_mesh(strategy))
    state = train.abstract_state()
    leaves = (*block_leaves(model.config), *shared_leaves(model.config))
    assert 4 * stored(leaves, strategy) == device_bytes(state.params)
    counters = 4  # Adam's count
    assert 8 * stored(leaves, strategy) + counters == device_bytes(state.opt_state)


@pytest.mark.parametrize("zero", [1, 3])
def test_rules_that_name_the_split_dim(zero):
    strategy = hj.Strategy(data=4, model=2, zero=zero, rules="megatron+fsdp")
    model = decoder()
    train = hj.make_train_step(model, optax.adamw(1e-3), strategy, hj.make_mesh(strategy))
    leaves = (*block_leaves(model.config), *shared_leaves(model.config))
    assert 4 * stored(leaves, strategy) == device_bytes(train.abstract_state().params)


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_leaves_are_those_of_the_model(style):
    model = decoder(style)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    expected = sorted(leaf.shape for leaf in jax.tree.leaves(shapes["blocks"]))
    assert sorted(leaf.shape for leaf in block_leaves(model.config)) == expected
    leaves = (*block_leaves(model.config), *shared_leaves(model.config))
    assert sum(leaf.size for leaf in leaves) == num_params(model.config)


def test_the_compute_copy_is_split_by_stage_and_model_alone():
    config = decoder().config
    strategy = hj.Strategy(stage=2, data=2, model=2)
    whole = gathered(block_leaves(config), hj.Strategy())
    norms = 2 * config.num_layers * config.embed_dim
    assert gathered(block_leaves(config), strategy) == (whole - norms) // 4 + norms // 2
    table = shared_leaves(config)[0]
    assert shard_of(table, strategy).gathered == (table.shape[0] // 2, table.shape[1])
    assert shard_of(table, strategy).stored == (table.shape[0] // 2, table.shape[1] // 4)
    assert shard_of(table, strategy).zero_axes == ("stage", "data")


def test_tiles_pad_the_dims_that_waste_least():
    assert entries((3, 256, 128), lanes=128) == 3 * 256 * 128
    assert entries((2, 4, 64), lanes=128) == 8 * 128 * 2  # no order of dims does better
    assert entries((1600,), lanes=128) == 1600
