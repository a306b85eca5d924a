"""Flags: none on a sound layout of any kind, one that names the remedy on each real mistake."""

import jax
import jax.numpy as jnp
import optax
import pytest
import tiny
from jax import lax

import hybrid_jax as hj
from hybrid_jax.analysis.flags import find_flags
from hybrid_jax.analysis.ledger import Collective, Ledger
from hybrid_jax.config.optimizer import OptimizerConfig
from hybrid_jax.models import Decoder
from hybrid_jax.train.optimizer import make_optimizer

WIDE = {"num_kv_heads": 4, "head_dim": 8}


def inspected(changed: Decoder | None = None, **fields):
    strategy = hj.Strategy(**{"remat": "none", **fields})
    mesh = hj.make_mesh(strategy)
    train = hj.make_train_step(changed or tiny.decoder(**WIDE), optax.adam(1e-3), strategy, mesh)
    return hj.inspect(train, (16, 8))


PIPELINE = {"stage": 2, "microbatches": 4}
SOUND = {
    "data, zero 0": {"data": 8, "zero": 0},
    "data, zero 1": {"data": 8, "microbatches": 2},
    "data, zero 3": {"data": 8, "zero": 3, "microbatches": 2},
    "replica": {"replica": 2, "data": 4},
    "model": {"data": 2, "model": 4, "microbatches": 2},
    "model, sp": {"data": 2, "model": 4, "microbatches": 2, "rules": "megatron+sp"},
    "fsdp rules": {"data": 2, "model": 4, "rules": "megatron+fsdp"},
    "whole mlp": {"data": 2, "model": 4, "rules": [("mlp", None), ("act_mlp", None)]},
    "stage": {"data": 2, "stage": 4, "microbatches": 4},
    "gpipe": {**PIPELINE, "data": 4, "schedule": "gpipe"},
    "interleaved": {**PIPELINE, "data": 4, "schedule": "interleaved", "chunks": 2},
    "2x2x2": {**PIPELINE, "data": 2, "model": 2, "remat": "layer"},
    "2x2x2, zero 3, sp": {**PIPELINE, "data": 2, "model": 2, "zero": 3, "rules": "megatron+sp"},
    "f32": {"data": 8, "precision": "f32"},
}  # fmt: skip


@pytest.mark.parametrize("fields", SOUND.values(), ids=SOUND)
def test_a_sound_layout_has_none(fields):
    report = inspected(**fields)
    assert report.flags == ()
    assert "no flags" in str(report)


MISTAKES = {
    "parameter whole": ([("mlp", None)], "('mlp', 'model'), or ('act_mlp', None)"),
    "activation whole": ([("act_mlp", None)], "('act_mlp', 'model'), or ('mlp', None)"),
    "heads": ([("act_heads", None)], "('act_heads', 'model'), or ('heads', None)"),
    "vocab on data": ([("vocab", "data")], "('vocab', 'model'), or ('act_vocab', None)"),
    "residual without sp": ([("act_embed", "model")], "use ('act_embed', None)"),
    "inside heads": (
        [("head_dim", "model"), ("heads", None), ("kv_heads", None)],
        "use ('head_dim', None)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rules", "remedy"), MISTAKES.values(), ids=MISTAKES)
def test_rules_that_contradict_each_other(rules, remedy):
    (flag,) = inspected(data=2, model=4, microbatches=2, rules=rules).flags
    assert flag.kind == "reshard"
    assert "over model" in flag.message and "nobody wrote" in flag.message
    assert remedy in flag.message
    assert flag.wire_bytes > 0 and "\n" not in flag.message


class BatchStatistics(Decoder):
    """A model that normalises over the whole batch: a mean over `data` in every layer."""

    def layer(self, params, x, batch, ctx):
        x = x - lax.pmean(jnp.mean(x, axis=(0, 1), keepdims=True), "data")
        return super().layer(params, x, batch, ctx)


def test_data_crossed_in_the_loop():
    (flag,) = inspected(BatchStatistics(tiny.decoder().config), data=8, microbatches=2).flags
    assert flag.kind == "in the loop"
    assert flag.message.startswith("all-reduce over data, ")
    assert "blocks" in flag.message and "zero=1" in flag.message


class WideBlock(Decoder):
    """A model whose layers forget to come back from f32."""

    def layer(self, params, x, batch, ctx):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        y = super().layer(wide, x.astype(jnp.float32), batch, ctx)
        return y.astype(x.dtype)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_f32_where_a_narrow_dtype_was_meant(precision):
    flags = inspected(WideBlock(tiny.decoder().config), data=8, precision=precision).flags
    assert {flag.kind for flag in flags} == {"f32"}
    assert any("dot_general computes on f32 in blocks/mlp" in flag.message for flag in flags)
    assert all(precision in flag.message for flag in flags)


def test_f32_that_was_asked_for():
    assert inspected(WideBlock(tiny.decoder().config), data=8, precision="f32").flags == ()


class WideHop(Decoder):
    """A model whose residual stream is f32: so it crosses the stages."""

    def embed(self, shared, batch, ctx):
        return super().embed(shared, batch, ctx).astype(jnp.float32)

    def layer(self, params, x, batch, ctx):
        y = super().layer(params, x.astype(jnp.bfloat16), batch, ctx)
        return y.astype(jnp.float32)

    def head(self, shared, x, batch, ctx):
        return super().head(shared, x.astype(jnp.bfloat16), batch, ctx)


def test_f32_between_stages():
    flags = inspected(WideHop(tiny.decoder().config), stage=2, data=4, microbatches=4).flags
    assert any("ppermute computes on f32 in to_next_stage" in flag.message for flag in flags)


class RowStatistics(Decoder):
    """A model that sums squares of each token in f32, as norms do, by a dot."""

    def layer(self, params, x, batch, ctx):
        wide = x.astype(jnp.float32)
        size = jnp.einsum("btd,btd->bt", wide, wide)[..., None]
        y = super().layer(params, x, batch, ctx)
        return (y * lax.rsqrt(1 + size)).astype(x.dtype)


def test_f32_of_statistics_is_meant():
    assert inspected(RowStatistics(tiny.decoder().config), data=8, remat="layer").flags == ()


def made_up(kind, axes, op_name):
    return Collective(kind, axes, 2, (), 1 << 20, "bf16", False, op_name, "main")


@pytest.mark.parametrize(
    ("row", "flagged"),
    [
        (made_up("all-gather", ("data",), "jit(step)/mul"), True),
        (made_up("all-to-all", ("stage",), "jit(step)/transpose"), True),
        (made_up("collective-permute", ("data",), "jit(step)/shard_map/blocks/ppermute"), False),
        (made_up("all-gather", ("data",), ""), False),  # unnamed: not judged
        (made_up("all-reduce", ("model",), "jit(step)/shard_map/blocks/dot_general"), False),
    ],
)
def test_a_reshard_outside_of_the_model_axis(row, flagged):
    strategy = hj.Strategy(data=8)
    train = hj.make_train_step(tiny.decoder(), optax.sgd(1), strategy, hj.make_mesh(strategy))
    flags = find_flags(train, train.trace((16, 8)), Ledger((row,), strategy.axis_sizes), (16, 8))
    assert [flag.kind for flag in flags] == ["reshard"] * flagged


def test_an_optimizer_that_works_on_whole_matrices():
    strategy = hj.Strategy(data=8)
    muon = make_optimizer(OptimizerConfig(name="muon"), 10, tiny.decoder().axes())
    train = hj.make_train_step(tiny.decoder(), muon, strategy, hj.make_mesh(strategy))
    flags = [flag for flag in hj.inspect(train, (16, 8)).flags if flag.kind != "f32"]
    assert [flag.kind for flag in flags] == ["optimizer"]
    assert "all-gather over data" in flags[0].message and flags[0].wire_bytes > 0
