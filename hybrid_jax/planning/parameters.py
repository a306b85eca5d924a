"""A decoder's parameters and what one device holds of each, counted without building them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

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


@lru_cache
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


@lru_cache
def shared_leaves(config: DecoderConfig) -> tuple[Leaf, ...]:
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


def shard_of(leaf: Leaf, strategy: Strategy) -> Shard:
    """Returns what a device holds of `leaf`, as `hybrid_jax.sharding.placement` places it."""
    return _shard(leaf, *_placement(strategy))


def _placement(strategy: Strategy) -> tuple[int, int, int, bool, bool]:
    """All of a strategy that the placement of parameters depends on."""
    rules = strategy.rules
    on_data = isinstance(rules, str) and "fsdp" in rules.split("+")
    return strategy.stage, strategy.data, strategy.model, strategy.zero > 0, on_data


@lru_cache(maxsize=65536)
def _shard(leaf: Leaf, stage: int, data: int, model: int, splits: bool, on_data: bool) -> Shard:
    is_block = leaf.names[0] == "layers"
    whole, free = list(leaf.shape), []
    for dim, name in enumerate(leaf.names):
        if name == "layers":
            whole[dim] //= stage
        elif name in ON_MODEL and model > 1:
            whole[dim] //= model
        else:
            free.append(dim)
    if on_data and "embed" in leaf.names:
        free = [leaf.names.index("embed")]
    sizes = {"data": data} if is_block else {"stage": stage, "data": data}
    everything = tuple(axis for axis, size in sizes.items() if size > 1)
    for axes in (everything, tuple(axis for axis in everything if axis == "data")):
        parts = math.prod(sizes[axis] for axis in axes)
        divisible = [dim for dim in free if whole[dim] % parts == 0]
        if splits and axes and divisible:
            dim = max(divisible, key=lambda dim: whole[dim])
            part = [*whole[:dim], whole[dim] // parts, *whole[dim + 1 :]]
            return Shard(tuple(part), tuple(whole), axes)
    return Shard(tuple(whole), tuple(whole), ())


def stored(leaves: tuple[Leaf, ...], strategy: Strategy, lanes: int = 1) -> int:
    """Entries of the master copy of `leaves` on one device; see `entries` for `lanes`."""
    return _totals(leaves, *_placement(strategy), lanes)[0]


def gathered(leaves: tuple[Leaf, ...], strategy: Strategy, lanes: int = 1) -> int:
    """Entries of the compute copy of `leaves` on one device; see `entries` for `lanes`."""
    return _totals(leaves, *_placement(strategy), lanes)[1]


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


@lru_cache(maxsize=16384)
def _totals(
    leaves: tuple[Leaf, ...],
    stage: int,
    data: int,
    model: int,
    splits: bool,
    on_data: bool,
    lanes: int,
) -> tuple[int, int]:
    """Entries (stored, gathered)."""
    shards = [_shard(leaf, stage, data, model, splits, on_data) for leaf in leaves]
    return (
        sum(entries(shard.stored, lanes) for shard in shards),
        sum(entries(shard.gathered, lanes) for shard in shards),
    )


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
