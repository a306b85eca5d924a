"""The (model, strategy, hardware) triples on which the planner's memory model is checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hybrid_jax.config.model import DecoderConfig, preset
from hybrid_jax.config.strategy import Strategy

MODELS: dict[str, DecoderConfig] = {
    "llama-1b": preset(  # Zhang et al. 2024 (TinyLlama)
        "llama2-7b",
        num_layers=22,
        embed_dim=2048,
        num_heads=32,
        num_kv_heads=4,
        mlp_dim=5632,
        max_length=2048,
    ),
    "gpt2-xl": preset("gpt2-xl", vocab_size=50304),
    "llama2-7b": preset("llama2-7b"),
    "llama3-8b": preset(  # Grattafiori et al. 2024
        "llama2-7b",
        vocab_size=128256,
        num_kv_heads=8,
        mlp_dim=14336,
        max_length=8192,
        rope_theta=5e5,
    ),
    "llama2-13b": preset("llama2-13b"),
    "llama2-70b": preset("llama2-70b"),
}


@dataclass(frozen=True)
class Triple:
    """One row of the table.

    Attributes:
      model: a key of `MODELS`.
      devices: as `jax.experimental.topologies` and the planner name them.
      strategy: fields of `Strategy`.
      per_microbatch: examples of one microbatch on one device.
      seq_len: tokens of an example.
    """

    model: str
    devices: str
    strategy: dict[str, Any] = field(hash=False)
    per_microbatch: int = 1
    seq_len: int = 4096

    @property
    def layout(self) -> Strategy:
        return Strategy(**self.strategy)

    @property
    def global_batch(self) -> int:
        layout = self.layout
        return layout.replica * layout.data * layout.microbatches * self.per_microbatch

    @property
    def name(self) -> str:
        batch = f"{self.global_batch}x{self.seq_len}"
        return f"{self.model} {self.devices} {batch} {self.layout.describe()}"


CUBE = {"stage": 4, "data": 4, "model": 4, "microbatches": 8}
SP = {"rules": "megatron+sp"}

TRIPLES = (
    Triple("llama2-7b", "v5p:4x4x4", CUBE),
    Triple("llama2-7b", "v5p:4x4x4", {**CUBE, **SP, "schedule": "interleaved", "chunks": 2}),
    Triple("llama2-7b", "v5p:4x4x4", {"data": 64, "zero": 3}),
    Triple("llama2-7b", "v5p:4x4x4", {**CUBE, **SP, "remat": "none"}),
    Triple("llama2-7b", "v5p:4x4x4", {**CUBE, "remat": "dots"}),
    Triple("llama2-7b", "v5p:4x4x4", {"data": 16, "model": 4, **SP}, per_microbatch=2),
    Triple("llama-1b", "v5e:4x4", {"data": 16}, per_microbatch=2, seq_len=2048),
    Triple("llama2-70b", "v5p:4x4x4", {"stage": 8, "model": 8, "microbatches": 16, **SP}),
    Triple("llama2-70b", "v5p:4x4x4", {"data": 8, "model": 8, "zero": 3, **SP}),
    Triple("gpt2-xl", "v5e:4x4", {"data": 16}, per_microbatch=4, seq_len=1024),
    Triple("llama3-8b", "v6e:4x4", {"data": 8, "model": 2, "zero": 3}),
    Triple(
        "llama3-8b",
        "v5p:4x4x4",
        {"stage": 4, "data": 8, "model": 2, "microbatches": 8, "remat": "layer"},
        seq_len=8192,
    ),
    Triple("llama2-13b", "v5p:4x4x4", {**CUBE, **SP, "remat": "dots"}, per_microbatch=2),
    Triple(
        "llama2-13b",
        "v5p:4x4x4",
        {**CUBE, "schedule": "gpipe", "microbatches": 4, "remat": "stage"},
    ),
    Triple(
        "llama-1b",
        "v5e:4x4",
        {"stage": 2, "data": 8, "microbatches": 4, "remat": "none"},
        seq_len=2048,
    ),
    Triple(
        "gpt2-xl",
        "v5e:4x4",
        {"stage": 4, "data": 4, "microbatches": 8, "remat": "dots"},
        seq_len=1024,
    ),
    Triple("llama2-13b", "v5p:4x4x4", {"data": 32, "model": 2, "zero": 3, "remat": "dots"}),
    Triple(
        "llama2-70b",
        "v5p:4x4x8",
        {
            "stage": 4,
            "data": 4,
            "model": 8,
            "microbatches": 8,
            "schedule": "interleaved",
            "chunks": 4,
        }
        | SP,
    ),
    Triple("llama2-7b", "v5p:2x2x1", {"model": 4, "microbatches": 4, **SP}),
    Triple("gpt2-xl", "v6e:4x4", {"data": 16, "zero": 3, "microbatches": 2}, 4, 1024),
    Triple("llama3-8b", "v5e:8x8", {"stage": 4, "data": 16, "microbatches": 4, "zero": 3}),
)

# Compiled after the formulas were fixed.
HELD_OUT = (
    Triple(
        "llama2-7b", "v6e:8x8", {"stage": 2, "data": 16, "model": 2, "microbatches": 4, "zero": 1}
    ),
    Triple("llama2-13b", "v5p:4x4x4", {"data": 16, "model": 4, "microbatches": 4, "remat": "dots"}),
    Triple("llama3-8b", "v5p:4x4x4", {"data": 64, "microbatches": 2, "remat": "stage"}),
    Triple(
        "llama2-70b",
        "v5p:4x8x8",
        {"stage": 4, "data": 8, "model": 8, "microbatches": 8, "zero": 3, "remat": "dots", **SP},
    ),
    Triple(
        "gpt2-xl",
        "v5e:4x4",
        {"stage": 2, "data": 8, "microbatches": 4, "zero": 3, "remat": "none"},
        seq_len=1024,
    ),
    Triple(
        "llama-1b",
        "v6e:4x4",
        {"data": 4, "model": 4, "microbatches": 2, "remat": "none", **SP},
        2,
        2048,
    ),
    Triple(
        "llama2-7b",
        "v5p:4x4x4",
        {"stage": 4, "data": 16, "schedule": "gpipe", "microbatches": 8},
    ),
    Triple("llama-1b", "v5p:2x2x1", {"data": 4, "zero": 0, "microbatches": 2}, seq_len=2048),
    Triple("llama-1b", "v5p:2x2x1", {"data": 4, "precision": "f32"}, seq_len=2048),
    Triple(
        "llama2-7b",
        "v5p:4x4x4",
        {"replica": 4, "data": 4, "model": 4, "microbatches": 2, "zero": 3, "remat": "none", **SP},
    ),
    Triple("llama2-70b", "v5e:16x16", {"data": 32, "model": 8, "zero": 3, **SP}),
    Triple("llama2-13b", "v6e:8x8", {"stage": 8, "data": 4, "model": 2, "microbatches": 16, **SP}),
)
