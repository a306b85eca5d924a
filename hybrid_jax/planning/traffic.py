"""What one device sends in a train step, by mesh axis, as the step's code says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from hybrid_jax.config.depth import padded
from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.planning.activations import COMPUTE_BYTES, splits_sequence, widths
from hybrid_jax.planning.parameters import Leaf, block_leaves, shard_of, shared_leaves
from hybrid_jax.planning.schedule_facts import schedule_facts


@dataclass(frozen=True)
class Transfer:
    """One kind of collective over one mesh axis, all of a step's together.

    Attributes:
      axis: the mesh axis.
      what: what is sent.
      kind: "gather" (or reduce-scatter: the same bytes), "reduce" (all-reduce: both) or "permute".
      bytes: of the arrays that are whole, before a reduction or after a gather, on one device.
      count: collectives in a step.
    """

    axis: str
    what: str
    kind: str
    bytes: float
    count: int

    def sent_bytes(self, size: int) -> float:
        """Bytes that one of `size` devices sends, as `inspect.ledger` counts them."""
        if self.kind == "permute":
            return self.bytes
        return self.bytes * (size - 1) / size * (2 if self.kind == "reduce" else 1)


def transfers(
    config: DecoderConfig, strategy: Strategy, global_batch: int, seq_len: int
) -> tuple[Transfer, ...]:
    """Returns the transfers of one step over axes of more than one device."""
    config = padded(config, strategy)
    found = [
        *_layers(config, strategy, global_batch, seq_len),
        *_stages(config, strategy, global_batch, seq_len),
        *_parameters(config, strategy),
    ]
    return tuple(t for t in found if getattr(strategy, t.axis) > 1 and t.bytes)


def _layers(config, strategy: Strategy, global_batch: int, seq_len: int) -> list[Transfer]:
    """Tensor parallelism: idle slots send too, since they compute on masked input.

    Forward: one all-reduce behind each row-parallel kernel. Backward: one for each gradient of a
    column-parallel kernel's input. Recomputation: "layer" has the attention branch's again (nothing
    reads that of the MLP), "stage" both. With sequence parallelism each is a reduce-scatter and a
    gather, half an all-reduce, and the two normed inputs are gathered again, for the gradients of
    the kernels; under "layer" XLA:TPU has the MLP's at hand, but gathers that of attention three
    times, for q, k and v, and once more for the recomputation's MLP.
    """
    x = _microbatch(config, strategy, global_batch, seq_len)
    again = {"none": 0.0, "dots": 0.0, "layer": 1.0, "stage": 2.0}[strategy.remat]
    if splits_sequence(strategy):
        again += 2.0 if strategy.remat == "layer" else 1.0
    facts = schedule_facts(strategy)
    count = _chunk_layers(config, strategy) * (2 * facts.f_ticks + (2 + again) * facts.b_ticks)
    # The embedding's rows lie on different devices; so do the columns of the logits, of which each
    # stage has its share of the tokens: dx, and three f32 numbers a token for the softmax.
    softmax = 3 * 4 * x.whole // (COMPUTE_BYTES[strategy.precision] * config.embed_dim)
    ends = facts.f_ticks * x.whole + facts.heads * (x.whole + softmax) / strategy.stage
    return [
        Transfer("model", "layers", "reduce", count * x.whole, round(count)),
        Transfer("model", "embedding and head", "reduce", ends, facts.f_ticks + 3 * facts.heads),
    ]


def _stages(config, strategy: Strategy, global_batch: int, seq_len: int) -> list[Transfer]:
    """Each tick hands x on and dx back; the head's tokens go to all stages, and back."""
    width = _microbatch(config, strategy, global_batch, seq_len)
    facts = schedule_facts(strategy)
    sends, heads = facts.x_sends + facts.dx_sends, 2 * facts.heads
    return [
        Transfer("stage", "activations", "permute", sends * width.stream, sends),
        Transfer("stage", "head", "gather", heads * width.whole, heads),
    ]


def _parameters(config, strategy: Strategy) -> list[Transfer]:
    """ZeRO: one gather and one reduction a step; level 3 gathers and reduces layer by layer."""
    blocks, shared = block_leaves(config), shared_leaves(config)
    if strategy.zero != 3:
        return _once(blocks, strategy) + _once(shared, strategy)
    # Forward and backward slots gather each; under "stage" the recomputation does too.
    facts = schedule_facts(strategy)
    gathers = facts.f_ticks + facts.b_ticks * (2 if strategy.remat == "stage" else 1)
    slots = {"parameters": gathers, "gradients": facts.b_ticks}
    layers = _chunk_layers(config, strategy)
    return [
        replace(t, bytes=t.bytes * slots[t.what] / strategy.chunks, count=slots[t.what] * layers)
        if t.kind == "gather"
        else t
        for t in _once(blocks, strategy)
    ] + _once(shared, strategy)


def _chunk_layers(config: DecoderConfig, strategy: Strategy) -> int:
    """Layers that a slot runs."""
    return config.num_layers // (strategy.stage * strategy.chunks)


def _once(leaves: tuple[Leaf, ...], strategy: Strategy) -> list[Transfer]:
    """One gather of the compute copy and one reduction of f32 gradients of these parameters."""
    entry = COMPUTE_BYTES[strategy.precision]
    split, copied = _crossing(leaves, replace(strategy, **_LIKE_ANY))
    return [
        transfer
        for axis in ("stage", "data")
        for transfer in (
            Transfer(axis, "parameters", "gather", entry * split[axis], 1),
            Transfer(axis, "gradients", "gather", 4 * split[axis], 1),
        )
    ] + [Transfer(axis, "gradients", "reduce", 4 * size, 1) for axis, size in copied.items()]


# The fields on which the placement of parameters does not depend: one entry of the cache for all.
_LIKE_ANY = {"microbatches": 1, "schedule": "1f1b", "chunks": 1, "remat": "layer"}


@lru_cache(maxsize=16384)
def _crossing(
    leaves: tuple[Leaf, ...], strategy: Strategy
) -> tuple[dict[str, int], dict[str, int]]:
    """Entries gathered and scattered over each axis, and those summed over it whole."""
    every_stage = leaves[0].names[0] != "layers"
    split = {"stage": 0, "data": 0}
    copied = {"replica": 0, "stage": 0, "data": 0}
    for leaf in leaves:
        shard = shard_of(leaf, strategy)
        whole = math.prod(shard.gathered)
        # Gathered over `data` first, then over `stage`; reduced the other way round.
        for axis in shard.zero_axes:
            split[axis] += whole
            whole //= getattr(strategy, axis)
        for axis in copied:
            if axis not in shard.zero_axes and (axis != "stage" or every_stage):
                copied[axis] += math.prod(shard.stored)
    return split, copied


def _microbatch(config, strategy: Strategy, global_batch: int, seq_len: int):
    shards = strategy.replica * strategy.data * strategy.microbatches
    return widths(config, strategy, global_batch // shards, seq_len)
