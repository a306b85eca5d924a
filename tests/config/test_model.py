"""Presets, cross-checks and analytic counts of decoder configurations."""

import jax
import pytest

from hybrid_jax.config.model import PRESETS, DecoderConfig, flops_per_token, num_params, preset
from hybrid_jax.errors import UserError
from hybrid_jax.models import Decoder

TINY = {
    "vocab_size": 31,
    "num_layers": 3,
    "embed_dim": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_dim": 24,
    "max_length": 8,
}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt2-small", 124_439_808),
        ("gpt2-xl", 1_557_611_200),
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, published):
    assert num_params(preset(name)) == published


def test_gpt3_has_175_billion_parameters():
    assert num_params(preset("gpt3-175b")) == pytest.approx(175e9, rel=0.005)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
@pytest.mark.parametrize("name", [*PRESETS, "tiny"])
def test_num_params_is_what_init_makes(name, style):
    config = preset("nano", style, **TINY) if name == "tiny" else preset(name, style)
    params = jax.eval_shape(Decoder(config).init, jax.random.key(0))
    assert num_params(config) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_layernorm_without_bias_is_counted_right():
    config = preset("nano", "gpt2", bias=False, tied=False, head_dim=12)
    params = jax.eval_shape(Decoder(config).init, jax.random.key(0))
    assert num_params(config) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_flops_are_six_per_matmul_weight_plus_attention():
    config = preset("llama2-7b")
    table_and_norms = 32000 * 4096 + (2 * 32 + 1) * 4096
    weights = num_params(config) - table_and_norms
    assert flops_per_token(config, 4096) == 6 * weights + 12 * 32 * 4096 * 4096


def test_tying_saves_parameters_but_no_operations():
    tied, untied = preset("nano", tied=True), preset("nano", tied=False)
    assert num_params(tied) < num_params(untied)
    assert flops_per_token(tied, 64) == flops_per_token(untied, 64)


def test_derived_sizes_follow_the_overrides():
    config = preset("gpt2-small", num_heads=16)
    assert (config.num_kv_heads, config.head_dim) == (16, 48)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"num_layers": 0}, "model.num_layers=0"),
        ({"num_heads": 3}, "model.embed_dim=128 is not divisible by model.num_heads=3"),
        ({"num_kv_heads": 3}, "must be a multiple of model.num_kv_heads=3"),
        ({"head_dim": 0}, "model.head_dim=0"),
        ({"head_dim": 15}, "positions='learned'"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"norm": "rmsnrm"}, "Did you mean 'rmsnorm'"),
        ({"num_layer": 2}, "Did you mean 'num_layers'"),
    ],
)
def test_contradictions_are_told_with_value_and_remedy(overrides, told):
    with pytest.raises(UserError, match=told):
        preset("nano", **overrides)


def test_unknown_preset_and_style_name_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'llama2-7b'"):
        preset("llama-7b")
    with pytest.raises(UserError, match="Did you mean 'llama'"):
        preset("nano", style="lama")


def test_the_style_fields_default_to_llama():
    config = DecoderConfig(**TINY)
    assert config == preset("nano", "llama", **TINY)
