"""Rules from logical names to mesh axes: in order, strict, written down."""

import pytest
from jax.sharding import PartitionSpec as P

from hybrid_jax.errors import UserError
from hybrid_jax.sharding.rules import AxisRules, resolve_rules


def test_the_first_rule_that_matches_wins():
    rules = AxisRules.of([("mlp", "data"), ("mlp", "model"), ("embed", None)])
    assert rules.to_spec(("embed", "mlp")) == P(None, "data")


def test_a_later_rule_serves_where_the_first_one_is_taken():
    rules = AxisRules.of([("heads", "model"), ("mlp", "model"), ("mlp", "data"), ("mlp", None)])
    assert rules.to_spec(("mlp",)) == P("model")
    assert rules.to_spec(("heads", "mlp")) == P("model", "data")
    assert rules.to_spec(("heads", "mlp", "mlp")) == P("model", "data", None)


def test_none_is_never_sharded():
    assert AxisRules.of([("a", "data")]).to_spec((None, "a", None)) == P(None, "data", None)


def test_several_mesh_axes_on_one_dim():
    rules = AxisRules.of([("batch", ("replica", "data"))])
    assert rules.to_spec(("batch", None)) == P(("replica", "data"), None)


def test_an_unknown_name_is_refused_with_a_hint():
    with pytest.raises(UserError) as error:
        resolve_rules(None).to_spec(("embed", "kv_head"), path="blocks/attention/k/kernel")
    message = str(error.value)
    assert message.startswith("blocks/attention/k/kernel")
    assert "no rule for logical axis 'kv_head'" in message
    assert "Did you mean 'kv_heads'?" in message
    assert "\n" not in message


def test_a_mesh_axis_is_used_once():
    rules = AxisRules.of([("heads", "model"), ("mlp", "model")])
    with pytest.raises(UserError, match="'mlp' wants mesh axis 'model', which an earlier dim"):
        rules.to_spec(("heads", "mlp"))


def test_part_of_several_mesh_axes_may_not_be_used_twice_either():
    rules = AxisRules.of([("batch", "data"), ("length", ("context", "data"))])
    with pytest.raises(UserError, match="'length' wants mesh axis 'data'"):
        rules.to_spec(("batch", "length"))


@pytest.mark.parametrize(
    ("preset", "norm_length", "embed"),
    [
        (None, ("context",), ()),
        ("megatron", ("context",), ()),
        ("megatron+sp", ("context", "model"), ()),
        ("megatron+fsdp", ("context",), ("data",)),
        ("megatron+sp+fsdp", ("context", "model"), ("data",)),
        ("megatron+fsdp+sp", ("context", "model"), ("data",)),
    ],
)
def test_presets(preset, norm_length, embed):
    rules = resolve_rules(preset)
    assert rules.mesh_axes("norm_length") == norm_length
    assert rules.mesh_axes("embed") == embed
    assert rules.mesh_axes("heads") == ("model",)


@pytest.mark.parametrize("name", ["megatorn", "sp", "megatron+tp", "megatron+", "", "fsdp+sp"])
def test_an_unknown_preset_is_refused(name):
    with pytest.raises(UserError, match="Presets: megatron, megatron"):
        resolve_rules(name)


def test_a_misspelt_preset_gets_a_hint():
    with pytest.raises(UserError, match="Did you mean 'megatron'"):
        resolve_rules("megatorn+sp")


def test_own_rules_go_before_the_default_ones():
    rules = resolve_rules([("mlp", None), ("rows", "model")])
    assert rules.to_spec(("embed", "mlp")) == P(None, None)
    assert rules.to_spec(("rows",)) == P("model")
    assert rules.to_spec(("heads",)) == P("model")
