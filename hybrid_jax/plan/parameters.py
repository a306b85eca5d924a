"""A decoder's parameters and what one device holds of each, counted without building them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.config.strategy import Strategy

ON_MODEL = frozenset({"vocab", "mlp", "heads", "kv_heads"})
"""Logical names that the default rules put on `model`."""


@dataclass(frozen=True)
class Leaf:
    """One parameter: its shape and the logical name of each dim."""

    shape: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Entries of the whole parameter."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """What one device holds of a parameter.

    Attributes:
      stored: shape of the master copy, and so of each moment of the optimizer.
      gathered: shape of the compute copy: only `stage` and `model` split it.
      zero_axes: the mesh axes over which the one becomes the other.
    """

    stored: tuple[int, ...]
    gathered: tuple[int, ...]
    zero_axes: tuple[str, ...]


def block_leaves(config: DecoderConfig) -> tuple[Leaf, ...]:
    """Returns the parameters of the stacked blocks, [L, ...]."""
    embed, heads, kv = config.embed_dim, config.num_heads, config.num_kv_heads
    head_dim, mlp = config.head_dim, config.mlp_dim
    leaves = [*_norm(config), *_norm(config)]
    for count, name in ((heads, "heads"), (kv, "kv_heads"), (kv, "kv_heads")):
        leaves += _projection(config, ("embed",), (name, "head_dim"), (embed, count, head_dim))
    leaves += _projection(config, ("heads", "head_dim"), ("embed",), (heads, head_dim, embed))
    for _ in range(num_up(config)):
        leaves += _projection(config, ("embed",), ("mlp",), (embed, mlp))
    leaves += _projection(config, ("mlp",), ("embed",), (mlp, embed))
    return tuple(Leaf((config.num_layers, *leaf.shape), ("layers", *leaf.names)) for leaf in leaves)


def outer_leaves(config: DecoderConfig) -> tuple[Leaf, ...]:
    """Returns the parameters of embedding and head, which every stage holds."""
    leaves = [Leaf((config.vocab_size, config.embed_dim), ("vocab", "embed"))]
    if config.positions == "learned":
        leaves.append(Leaf((config.max_length, config.embed_dim), ("positions", "embed")))
    leaves += _norm(config)
    if not config.tied:
        leaves.append(Leaf((config.embed_dim, config.vocab_size), ("embed", "vocab")))
    return tuple(leaves)


def num_up(config: DecoderConfig) -> int:
    """Matrices from the residual stream into the MLP: two where it is gated."""
    return 2 if config.activation == "silu" else 1


def shard(leaf: Leaf, strategy: Strategy) -> Shard:
    """Returns what a device holds of `leaf`, as `hybrid_jax.sharding.placement` places it."""
    is_block = leaf.names[0] == "layers"
    whole, free = list(leaf.shape), []
    for dim, name in enumerate(leaf.names):
        if name == "layers":
            whole[dim] //= strategy.stage
        elif name in ON_MODEL and strategy.model > 1:
            whole[dim] //= strategy.model
        else:
            free.append(dim)
    if _on_data(strategy) and "embed" in leaf.names:
        free = [leaf.names.index("embed")]
    candidates = ("data",) if is_block else ("stage", "data")
    everything = tuple(axis for axis in candidates if getattr(strategy, axis) > 1)
    for axes in (everything, tuple(axis for axis in everything if axis == "data")):
        parts = math.prod(getattr(strategy, axis) for axis in axes)
        divisible = [dim for dim in free if whole[dim] % parts == 0]
        if strategy.zero and axes and divisible:
            dim = max(divisible, key=lambda dim: whole[dim])
            part = [*whole[:dim], whole[dim] // parts, *whole[dim + 1 :]]
            return Shard(tuple(part), tuple(whole), axes)
    return Shard(tuple(whole), tuple(whole), ())


def stored(leaves: Iterable[Leaf], strategy: Strategy, lanes: int = 1) -> int:
    """Entries of the master copy of `leaves` on one device; see `entries` for `lanes`."""
    return sum(entries(shard(leaf, strategy).stored, lanes) for leaf in leaves)


def gathered(leaves: Iterable[Leaf], strategy: Strategy, lanes: int = 1) -> int:
    """Entries of the compute copy of `leaves` on one device; see `entries` for `lanes`."""
    return sum(entries(shard(leaf, strategy).gathered, lanes) for leaf in leaves)


def entries(shape: tuple[int, ...], lanes: int = 1) -> int:
    """Entries that an array takes in memory, padding included.

    XLA:TPU stores tiles of 8 x 128 entries over whichever two dims of the last three (XLA lays
    them as it likes) waste least; elsewhere arrays are dense.

    >>> entries((48, 100, 25, 64)), entries((48, 100, 25, 64), lanes=128)
    (7680000, 9830400)

    Args:
      lanes: 128 on TPU, else 1.
    """
    size = math.prod(shape)
    if lanes == 1 or len(shape) < 2:
        return size
    up = lambda dim, unit: -(-shape[dim] // unit) * unit
    dims = range(max(0, len(shape) - 3), len(shape))
    return min(
        size // (shape[minor] * shape[second]) * up(minor, lanes) * up(second, 8)
        for minor in dims
        for second in dims
        if minor != second
    )


def _on_data(strategy: Strategy) -> bool:
    """Whether the rules name the dim that ZeRO splits."""
    return isinstance(strategy.rules, str) and "fsdp" in strategy.rules.split("+")


def _norm(config: DecoderConfig) -> list[Leaf]:
    has_bias = config.norm == "layernorm" and config.bias
    return [Leaf((config.embed_dim,), ("embed",))] * (2 if has_bias else 1)


def _projection(
    config: DecoderConfig, inputs: tuple[str, ...], outputs: tuple[str, ...], shape: tuple[int, ...]
) -> list[Leaf]:
    leaves = [Leaf(shape, (*inputs, *outputs))]
    if config.bias:
        leaves.append(Leaf(shape[len(inputs) :], outputs))
    return leaves
