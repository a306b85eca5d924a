"""The report of a real train step."""

import json
import re

import jax
import numpy as np
import optax
import pytest

from hybrid_jax.analysis.report import inspect
from hybrid_jax.config.model import preset
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
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
    assert report.bubble.predicted == pytest.approx((2 - 1) / 4)
    assert report.bubble.measured is None


def test_memory_holds_the_state(train, report):
    state = jax.tree.leaves(train.init(jax.random.key(0)))
    state_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in state)
    batch_bytes = 3 * 16 * 8 * 4 // 2
    assert report.memory.argument == pytest.approx(state_bytes + batch_bytes, rel=0.02)
    assert report.memory.alias >= 0.9 * state_bytes


def test_text_and_html(report):
    for shown in (str(report), report._repr_html_()):
        assert "stage 2 x data 2 x model 2" in shown
        assert re.search(r"bubble +25.0%", shown)
        assert "in f32, and sends twice the bytes of a GPU or TPU" in " ".join(shown.split())
        assert "embed/tokens, parameter" in shown
        assert "blocks/attention/q/kernel" in shown
        assert "collective-permute" in shown
    assert max(map(len, str(report).splitlines())) <= 130


def test_the_important_comes_first(report):
    text = str(report)
    titles = ("no flags", "hardware FLOPs", "Memory per device", "Communication", "Parameters")
    positions = [text.index(title) for title in titles]
    assert positions == sorted(positions)


def test_assertions_on_the_report(report):
    report.assert_no("all-gather", axis="data", in_loop=True)
    assert report.count("all-reduce", axis="model") == report.ledger.count("all-reduce", "model")
    assert report.wire_bytes(axis="stage") == report.ledger.wire_bytes(axis="stage") > 0
    with pytest.raises(AssertionError, match="reduce-scatter over data"):
        report.assert_no("reduce-scatter", axis="data")
    with pytest.raises(UserError, match="Did you mean 'all-gather'"):
        report.count("all-gathr")


@pytest.mark.parametrize("shape", [(16,), (16, 0), [16, 8], (16, 8.0), 16, None])
def test_a_wrong_batch_shape(train, shape):
    with pytest.raises(UserError, match=r"must be the global \(B, T\) of the tokens|give \(B, T\)"):
        inspect(train, shape)


def test_a_batch_that_does_not_divide(train):
    with pytest.raises(UserError, match="12 examples, not divisible by 2 data shards"):
        inspect(train, (12, 8))


def test_names_are_those_of_this_program():
    """JAX's persistent cache, by default, gives an equal program under an older one's names."""

    def step(scope):
        class Named(Decoder):
            def layer(self, *args):
                with jax.named_scope(scope):
                    return super().layer(*args)

        strategy = Strategy(data=2, model=4)
        model = Named(preset("nano", num_layers=2, embed_dim=32, mlp_dim=64, max_length=16))
        return make_train_step(model, optax.sgd(1e-3), strategy, make_mesh(strategy))

    for scope in ("one", "two"):
        rows = inspect(step(scope), (8, 8)).ledger.rows
        assert any(f"{scope}/mlp" in row.op_name for row in rows)


def test_json(report):
    content = json.loads(report.to_json())
    assert content["strategy"]["stage"] == 2
    assert content["memory"]["total"] == report.memory.total
    assert content["memory"]["state"]["optimizer: mu"] == content["memory"]["state"]["parameters"]
    assert content["flops"]["hardware"] == report.flops.hardware > content["flops"]["model"]
    assert content["bubble"]["predicted"] == 0.25
    assert content["flags"] == []
    assert "blocks/mlp/up/kernel, parameter" in {row["source"] for row in content["collectives"]}
    assert len(content["parameters"]) == len(report.parameters)
    sent = [row["wire_bytes"] for row in content["collectives"]]
    np.testing.assert_allclose(sum(sent), report.ledger.wire_bytes())
    np.testing.assert_allclose(
        sum(total["wire_bytes"] for total in content["communication"]), sum(sent)
    )
