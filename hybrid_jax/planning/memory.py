"""Bytes that one device needs for a train step, by part, from the model and the layout alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hybrid_jax.config.depth import padded
from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.planning.activations import COMPUTE_BYTES, residual_bytes, widths
from hybrid_jax.planning.parameters import (
    block_leaves,
    gathered,
    num_up,
    shared_leaves,
    stored,
)
from hybrid_jax.planning.schedule_facts import schedule_facts

OPTIMIZER_BYTES = {"adamw": 8, "muon": 8, "lion": 4, "adafactor": 0, "sgd": 0}
"""Of f32 state for each parameter; Adafactor's factored moments are small, Muon's the most."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the worst moment of a step.

    Attributes:
      parameters: f32 master copy.
      optimizer: its moments, f32.
      compute_copy: parameters as the layers read them.
      gradients: the sums that wait for the one reduction of the step, and those of a chunk, as
        its backward pass returns them.
      residuals: what forward slots keep for their backward slots.
      boundary: activations and their gradients between stages.
      slot: what the head, a backward slot or the embedding's gradient, whichever needs most, works
        on besides.
      batch: tokens, targets and weights.
    """

    parameters: int
    optimizer: int
    compute_copy: int
    gradients: int
    residuals: int
    boundary: int
    slot: int
    batch: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(dataclasses.astuple(self))


def memory(
    config: DecoderConfig,
    strategy: Strategy,
    global_batch: int,
    seq_len: int,
    optimizer: str = "adamw",
    platform: str = "tpu",
) -> Memory:
    """Returns the memory of one train step, by part.

    Args:
      global_batch: examples of all devices in a step, a multiple of replica x data x microbatches.
      seq_len: tokens of an example.
      optimizer: a key of `OPTIMIZER_BYTES`.
      platform: "tpu", where arrays are padded to tiles, "gpu", or "cpu", where no kernel computes
        attention without its scores.
    """
    local = global_batch // (strategy.replica * strategy.data)
    step = _Step(padded(config, strategy), strategy, local, seq_len, platform)
    masters = stored((*step.blocks, *step.shared), strategy, step.lanes)
    compute = gathered(step.shared, strategy, step.lanes) + step.block_entries
    layer, chunk = step.residuals(strategy.remat)
    gradients, slot = max(step.head_phase(), step.backward_phase(), step.embedding_phase(), key=sum)
    return Memory(
        parameters=4 * masters,
        optimizer=OPTIMIZER_BYTES[optimizer] * masters,
        compute_copy=step.entry * compute,
        gradients=gradients + (4 * compute if step.accumulates else 0),
        residuals=max(step.slots, 1) * (step.layers * layer + chunk),
        boundary=step.boundary(),
        slot=slot,
        batch=4 * 3 * local * seq_len,
    )


class _Step:
    """The sizes that the parts have in common, for one device."""

    def __init__(
        self, config: DecoderConfig, strategy: Strategy, local: int, seq_len: int, platform: str
    ):
        self.config, self.strategy = config, strategy
        self.blocks, self.shared = block_leaves(config), shared_leaves(config)
        self.lanes = 128 if platform == "tpu" else 1
        self.fused = platform != "cpu"
        self.entry = COMPUTE_BYTES[strategy.precision]
        self.tokens = local // strategy.microbatches * seq_len
        batch = local // strategy.microbatches
        self.width = widths(config, strategy, batch, seq_len, self.lanes)
        self.facts = schedule_facts(strategy)
        self.slots = self.facts.slots
        self.layers = config.num_layers // (strategy.stage * strategy.chunks)
        # With a single tick there is nothing to add up: gradients go straight to the reduction.
        self.accumulates = self.facts.b_ticks > 1

    def residuals(self, remat: str) -> tuple[int, int]:
        """(bytes a layer, bytes a chunk) of one microbatch under this policy."""
        return residual_bytes(self.config, remat, self.width, fused=self.fused)

    @property
    def block_entries(self) -> int:
        """Of the compute copy of the layers: ZeRO-3 casts the shards and gathers no more."""
        count = stored if self.strategy.zero == 3 else gathered
        return count(self.blocks, self.strategy, self.lanes)

    @property
    def head_gradient(self) -> int:
        """Of the output kernel (tied: the table), in the compute dtype."""
        kernel = self.shared[0 if self.config.tied else -1]
        return self.entry * gathered((kernel,), self.strategy, self.lanes)

    def boundary(self) -> int:
        """x and dx as received, and outputs that wait for their head."""
        waiting = self.slots if self.facts.stores_outputs else 0
        return (2 + waiting) * self.width.stream if self.strategy.stage > 1 else 0

    def backward_phase(self) -> tuple[int, int]:
        """(gradients not yet added up, the slot's work) while a chunk goes backward.

        The scan over the layers stacks their gradients in the compute dtype before they are added
        to the f32 sums. The slot has a copy of its residuals out of the ring, and the layer at
        work: its parameters (gathered, for ZeRO-3), up, gate and one gradient of that width, and
        three arrays of the stream's: normed, its gradient, dy.
        """
        strategy, width = self.strategy, self.width
        layer, chunk_input = self.residuals(strategy.remat)
        chunk = self.entry * self.block_entries // strategy.chunks
        read = self.layers * layer + chunk_input if self.slots else 0
        if strategy.remat == "stage":
            read += self.layers * self.residuals("none")[0]
        if strategy.chunks > 1:
            read += chunk  # the chunk's parameters, sliced out of the stage's
        parameters = self.entry * gathered(self.blocks, strategy, self.lanes)
        one_layer = parameters * strategy.stage // self.config.num_layers
        work = (num_up(self.config) + 1) * width.mlp + 3 * width.whole
        scores = 0 if self.fused else 3 * width.scores
        head = 0 if self.accumulates else self.head_gradient
        return chunk + head, read + one_layer + work + scores

    def head_phase(self) -> tuple[int, int]:
        """(its kernel's gradient, the slot's work) while the head runs.

        f32 logits and their gradient in the compute dtype, of this stage's share of the tokens; the
        logits are gone when the kernel's gradient comes.
        """
        share = -(-self.tokens // self.strategy.stage)
        logits = share * self.config.vocab_size // self.strategy.model
        return 0, max((4 + self.entry) * logits, self.entry * logits + self.head_gradient)

    def embedding_phase(self) -> tuple[int, int]:
        """(nothing, the slot's work) while the embedding's gradient is added up.

        The gradient of a lookup is a dense table in the compute dtype: zeros, and what the
        scatter makes of them.
        """
        table = gathered(self.shared[:1], self.strategy, self.lanes)
        return 0, 2 * self.entry * table if self.accumulates else 0
