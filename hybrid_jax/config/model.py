"""What a decoder is: its sizes, its style, the published presets. Pure data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from hybrid_jax.config.checks import did_you_mean, matching, shown
from hybrid_jax.config.fields import Count, Interval, check_fields
from hybrid_jax.errors import UserError

Style = Literal["gpt2", "llama"]


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and style of a decoder-only transformer; the defaults of the style fields are Llama's.

    Attributes:
      vocab_size: rows of the token table.
      num_layers: blocks, each one attention and one MLP.
      embed_dim: width of the residual stream.
      num_heads: query heads.
      mlp_dim: width inside the MLP.
      max_length: longest sequence in tokens; learned positions have so many rows.
      num_kv_heads: key and value heads, shared by `num_heads / num_kv_heads` query heads each
        (grouped-query attention). None becomes `num_heads`.
      head_dim: width of a head. None becomes `embed_dim / num_heads`.
      norm: "layernorm", with an offset where `bias` is set, or "rmsnorm".
      activation: "gelu" (tanh approximation) or "silu" (gated, two matrices up).
      positions: "learned" table added to the embedding, or "rotary" turning of queries and keys.
      bias: whether matmuls and layer norms add one.
      tied: whether the logits reuse the token table.
      dropout: probability of zeroing an entry of the embedding or of a residual branch, in [0, 1).
      norm_eps: added to the variance.
      rope_theta: base of the rotary wavelengths, in tokens.

    Raises:
      UserError: a size is not positive, or two fields contradict each other.
    """

    vocab_size: Count
    num_layers: Count
    embed_dim: Count
    num_heads: Count
    mlp_dim: Count
    max_length: Count
    num_kv_heads: Count = None  # pyright: ignore[reportAssignmentType]
    head_dim: Count = None  # pyright: ignore[reportAssignmentType]
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    activation: Literal["gelu", "silu"] = "silu"
    positions: Literal["learned", "rotary"] = "rotary"
    bias: bool = False
    tied: bool = False
    dropout: Annotated[float, Interval("[0, 1)")] = 0.0
    norm_eps: Annotated[float, Interval("(0, 1]")] = 1e-5
    rope_theta: Annotated[float, Interval("[1, inf)")] = 10000.0

    def __post_init__(self):
        check_fields("model", self)
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_heads={self.num_heads} must be a multiple of "
                f"model.num_kv_heads={self.num_kv_heads}: key heads are shared equally."
            )
        if self.head_dim is None:
            if self.embed_dim % self.num_heads:
                raise UserError(
                    f"model.embed_dim={self.embed_dim} is not divisible by "
                    f"model.num_heads={self.num_heads}: change one of them, or set model.head_dim."
                )
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(
                f"model.head_dim={self.head_dim} is odd, but rotary positions turn pairs: "
                "make it even, or use positions='learned'."
            )
        if num_params(self) > _MOST_PARAMS:
            raise UserError(
                f"model: its sizes make {num_params(self):.3g} parameters, but {_MOST_PARAMS:.3g} "
                "are the most whose bytes can be counted: make a size smaller."
            )


_MOST_PARAMS = 2**59  # of 16 bytes each with Adam, in 64 bits

STYLES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "norm": "layernorm",
        "activation": "gelu",
        "positions": "learned",
        "bias": True,
        "tied": True,
    },
    "llama": {
        "norm": "rmsnorm",
        "activation": "silu",
        "positions": "rotary",
        "bias": False,
        "tied": False,
    },
}


def _sizes(style, vocab_size, max_length, num_layers, embed_dim, num_heads, mlp_dim, kv_heads=None):
    return {
        "style": style,
        "vocab_size": vocab_size,
        "max_length": max_length,
        "num_layers": num_layers,
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
        "num_kv_heads": kv_heads,
    }


# Radford et al. 2019 (table 2), Brown et al. 2020 (table 2.1), Touvron et al. 2023 (Llama 2).
PRESETS: dict[str, dict[str, Any]] = {
    "nano": _sizes("llama", 256, 256, 4, 128, 4, 384),
    "gpt2-small": _sizes("gpt2", 50257, 1024, 12, 768, 12, 3072),
    "gpt2-medium": _sizes("gpt2", 50257, 1024, 24, 1024, 16, 4096),
    "gpt2-large": _sizes("gpt2", 50257, 1024, 36, 1280, 20, 5120),
    "gpt2-xl": _sizes("gpt2", 50257, 1024, 48, 1600, 25, 6400),
    "gpt3-175b": _sizes("gpt2", 50257, 2048, 96, 12288, 96, 49152),
    "llama2-7b": _sizes("llama", 32000, 4096, 32, 4096, 32, 11008),
    "llama2-13b": _sizes("llama", 32000, 4096, 40, 5120, 40, 13824),
    "llama2-70b": _sizes("llama", 32000, 4096, 80, 8192, 64, 28672, kv_heads=8),
}


def preset(name: str, style: Style | None = None, **overrides: Any) -> DecoderConfig:
    """Returns a published configuration, with any of its fields replaced.

    >>> preset("llama2-7b").embed_dim
    4096
    >>> preset("nano", style="gpt2", num_layers=8).norm
    'layernorm'

    Args:
      name: a key of `PRESETS`.
      style: "gpt2" or "llama": takes the style fields from that family; sizes stay the preset's.
      overrides: fields of `DecoderConfig`.

    Raises:
      UserError: an unknown preset, style or field, or fields that contradict each other.
    """
    if matching(name, PRESETS) is None:
        raise UserError(
            f"unknown model preset {shown(name)}: choose one of {', '.join(PRESETS)}."
            f"{did_you_mean(name, PRESETS)}"
        )
    sizes = dict(PRESETS[name])
    own_style = sizes.pop("style")
    family = matching(own_style if style is None else style, STYLES)
    if family is None:
        choices = get_args(Style)
        raise UserError(
            f"unknown model style {shown(style)}: choose one of {', '.join(choices)}."
            f"{did_you_mean(style, choices)}"
        )
    fields = [field.name for field in dataclasses.fields(DecoderConfig)]
    for field in overrides:
        if field not in fields:
            raise UserError(
                f"unknown model field {field!r}: the fields are {', '.join(fields)}."
                f"{did_you_mean(field, fields)}"
            )
    return DecoderConfig(**{**sizes, **STYLES[family], **overrides})


def num_params(config: DecoderConfig) -> int:
    """Number of parameters of `Decoder(config)`, counted without building it.

    >>> num_params(preset("llama2-7b"))
    6738415616
    """
    norm = config.embed_dim * (2 if config.norm == "layernorm" and config.bias else 1)
    table = config.vocab_size * config.embed_dim
    positions = config.max_length * config.embed_dim if config.positions == "learned" else 0
    biases = 0
    if config.bias:
        attention = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        biases = attention + _num_mlp_up(config) * config.mlp_dim + 2 * config.embed_dim
    layer = _num_layer_weights(config) + biases + 2 * norm
    head = norm + (0 if config.tied else table)
    return table + positions + config.num_layers * layer + head


def flops_per_token(config: DecoderConfig, seq_len: int) -> float:
    """Floating-point operations of one token's forward and backward pass, recomputation excluded.

    Every matmul weight costs 2 operations forward and 4 backward (Hoffmann et al. 2022, appendix
    F); scores and their product with the values add 12 N H per layer and token attended to
    (Chowdhery et al. 2022, appendix B, which counts the full square of a causal mask too).
    Lookups, norms and biases are left out; the logits count, tied or not.

    Args:
      seq_len: tokens in a sequence.
    """
    weights = config.num_layers * _num_layer_weights(config) + config.vocab_size * config.embed_dim
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * seq_len
    return float(6 * weights + attention)


def _num_mlp_up(config: DecoderConfig) -> int:
    return 2 if config.activation == "silu" else 1


def _num_layer_weights(config: DecoderConfig) -> int:
    """Entries of one layer's matrices."""
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    mlp = (_num_mlp_up(config) + 1) * config.mlp_dim
    return config.embed_dim * (attention + mlp)
