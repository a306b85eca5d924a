"""The report of a real train step."""

import json

import jax
import numpy as np
import optax
import pytest

from hybrid_jax.config.model import preset
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.inspect.report import inspect
from hybrid_jax.models.decoder import Decoder
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.train.step import make_train_step


@pytest.fixture(scope="module")
def train():
    strategy = Strategy(stage=2, data=2, model=2, microbatches=4)
    config = preset("nano", style="llama", num_layers=2, embed_dim=32, mlp_dim=64, max_length=16)
    return make_train_step(Decoder(config), optax.adam(1e-3), strategy, make_mesh(strategy))


@pytest.fixture(scope="module")
def report(train):
    return inspect(train, (16, 8))


def test_parameters(train, report):
    """Paths, shapes and bytes are those of the state that the step really makes."""
    params = train.init(jax.random.key(0)).params
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert [row.path for row in report.parameters] == [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
    ]
    for row, (_, leaf) in zip(report.parameters, leaves, strict=True):
        assert (row.shape, row.spec) == (leaf.shape, leaf.sharding.spec)
        assert len(row.axes) == leaf.ndim
        assert row.bytes == leaf.nbytes
        assert row.device_bytes == leaf.addressable_shards[0].data.nbytes


def test_pipeline_hops(report):
    """Activations and gradients hop between stages in permutes that cross no other axis."""
    hops = report.ledger.select("collective-permute", axis="stage")
    assert hops and all(row.axes == ("stage",) for row in hops)
    assert report.bubble == pytest.approx((2 - 1) / 4)


def test_memory_holds_the_state(train, report):
    state = jax.tree.leaves(train.init(jax.random.key(0)))
    state_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in state)
    batch_bytes = 3 * 16 * 8 * 4 // 2
    assert report.memory.argument == pytest.approx(state_bytes + batch_bytes, rel=0.02)
    assert report.memory.alias >= 0.9 * state_bytes


def test_text_and_html(report):
    for shown in (str(report), report._repr_html_()):
        assert "stage 2 x data 2 x model 2" in shown
        assert "bubble 25.0%" in shown
        assert "blocks/attention/q/kernel" in shown
        assert "collective-permute" in shown
    assert max(map(len, str(report).splitlines())) <= 130


def test_json(report):
    content = json.loads(report.to_json())
    assert content["strategy"]["stage"] == 2
    assert content["memory"]["total"] == report.memory.total
    assert len(content["parameters"]) == len(report.parameters)
    sent = [row["wire_bytes"] for row in content["collectives"]]
    np.testing.assert_allclose(sum(sent), report.ledger.wire_bytes())
    np.testing.assert_allclose(
        sum(total["wire_bytes"] for total in content["communication"]), sum(sent)
    )
