"""What a microbatch leaves behind in one layer, and what computing that layer needs."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.planning.parameters import num_up

COMPUTE_BYTES = {"bf16": 2, "fp16": 2, "f32": 4}


@dataclass(frozen=True)
class Widths:
    """Bytes that one microbatch of one device has in one layer's arrays, by kind.

    Attributes:
      stream: the residual stream x [b, T, D]; split over `model` with sequence parallelism.
      whole: the same before it is split: what a column-parallel matmul reads.
      heads: queries, or the attention's output, [b, T, N, H].
      kv_heads: keys, or values.
      mlp: one array [b, T, F].
      statistics: one f32 number for every token and head.
      scores: f32 [b, N, T, T]: exists where no fused kernel computes attention.
      tables: cosines and sines of rotary positions, f32 [1, T, 1, H / 2] each, else 0.
    """

    stream: int
    whole: int
    heads: int
    kv_heads: int
    mlp: int
    statistics: int
    scores: int
    tables: int


def widths(
    config: DecoderConfig, strategy: Strategy, batch: int, seq_len: int, lanes: int = 1
) -> Widths:
    """Returns the widths of a microbatch of `batch` examples a device.

    >>> from hybrid_jax.config.model import preset
    >>> widths(preset("llama2-7b"), Strategy(model=4), batch=1, seq_len=4096).mlp
    22544384

    Args:
      lanes: 128 on TPU, where attention's arrays pad each head to so many entries, else 1.
    """
    head_dim = -(-config.head_dim // lanes) * lanes
    tokens, model = batch * seq_len, strategy.model
    entry = tokens * COMPUTE_BYTES[strategy.precision]
    whole = entry * config.embed_dim
    return Widths(
        stream=whole // (model if splits_sequence(strategy) else 1),
        whole=whole,
        heads=entry * config.num_heads * head_dim // model,
        kv_heads=entry * config.num_kv_heads * head_dim // model,
        mlp=entry * config.mlp_dim // model,
        statistics=4 * tokens * config.num_heads // model,
        scores=4 * tokens * seq_len * config.num_heads // model,
        tables=4 * seq_len * config.head_dim if config.positions == "rotary" else 0,
    )


def splits_sequence(strategy: Strategy) -> bool:
    """Whether the residual stream is split over `model` (Korthikanti et al. 2022)."""
    rules = strategy.rules
    if isinstance(rules, tuple):
        return any(name == "norm_length" and "model" in (axes or ()) for name, axes in rules)
    return strategy.model > 1 and rules is not None and "sp" in rules.split("+")


def residual_bytes(
    config: DecoderConfig, remat: str, width: Widths, *, fused: bool = True
) -> tuple[int, int]:
    """Returns what the forward pass keeps for the backward pass: (bytes a layer, bytes a chunk).

    Taken from the leaves of `jax.vjp` of a chunk (`pipeline.ring.plan_residuals`):

    * none: x, the normed x, q, k, v, attention's output, x between the two branches, that normed,
      and up, gate and their product (or up before and after its activation).
    * dots: x, and the matmul results that the backward pass reads: q, k, v, the attention branch,
      up, gate. (That of the MLP branch it does not read.)
    * layer: x.  * stage: x of the chunk's first layer alone.

    Args:
      fused: whether attention is a kernel that keeps q, k and v only; else it keeps the
        normaliser of its softmax too.
    """
    attention = width.heads + 2 * width.kv_heads
    up = num_up(config) * width.mlp
    match remat:
        case "none":
            normalizer = 0 if fused else width.statistics
            layer = 4 * width.stream + attention + width.heads + up + width.mlp
            return layer + normalizer, width.tables
        case "dots":
            return 2 * width.stream + attention + up, 0
        case "layer":
            return width.stream, 0
        case _:
            return 0, width.stream
