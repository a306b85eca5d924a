"""One device's share of a step: where it stands, what it holds, what its slots do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_jax.pipeline import ring as ring_buffer
from hybrid_jax.pipeline.head_split import split_tokens
from hybrid_jax.pipeline.program import StageProgram
from hybrid_jax.pipeline.schedules import Schedule

PyTree = Any


class Inputs(NamedTuple):
    """What one device brings to the step.

    Attributes:
      outer: compute copies of the parameters that every stage holds (embedding, head).
      blocks: compute copies of this stage's layers, leaves [chunks, Lc, ...].
      batch: leaves [M, b, ...].
      key_data: raw PRNG key of this step.
      loss_scale: what the backward pass starts from, for gradients that f16 can hold; None: one.
    """

    outer: PyTree
    blocks: PyTree
    batch: dict[str, jax.Array]
    key_data: jax.Array
    loss_scale: jax.Array | None = None


class Totals(NamedTuple):
    """Sums over this device's microbatches and its share of the tokens; gradients are f32."""

    loss_sum: jax.Array
    weight_sum: jax.Array
    outer_grads: PyTree
    block_grads: PyTree


class Work(NamedTuple):
    """Which (microbatch, chunk) a slot works on, and the ring slot of its residuals."""

    microbatch: jax.Array
    chunk: jax.Array
    slot: jax.Array

    @property
    def valid(self) -> jax.Array:
        """False in a bubble."""
        return self.microbatch >= 0


class Device:
    """The slots of one device, as pure functions of what flows through them."""

    def __init__(
        self,
        schedule: Schedule,
        program: StageProgram,
        inputs: Inputs,
        *,
        skip_bubbles: bool,
        bubble_value: float,
    ):
        self.schedule, self.program, self.inputs = schedule, program, inputs
        self.skip_bubbles, self.bubble_value = skip_bubbles, bubble_value
        self.stages = schedule.stages
        self.stage = lax.axis_index("stage") if self.stages > 1 else 0
        self.trains = bool((schedule.b_microbatch >= 0).any())
        first = _take(inputs.batch, 0)
        self.x_shape = jax.eval_shape(program.embed, inputs.outer, first, inputs.key_data)
        self.tokens = split_tokens(self.x_shape, first, self.stages, program.head_dims)
        if self.trains:
            self.plan = ring_buffer.plan_residuals(self.forward, self.known(0, 0), self.x_shape)

    def known(self, microbatch: jax.Array | int, chunk: jax.Array | int) -> PyTree:
        """Inputs of a forward slot that the backward slot can look up again: never stored."""
        if self.schedule.chunks == 1:
            chunk = 0
        params = _take(self.inputs.blocks, chunk)
        leaves = jax.tree.leaves(params)
        num_layers = leaves[0].shape[0] if leaves else 0
        # Chunk c of stage d is the (c S + d)-th group of layers in depth.
        layer_ids = (chunk * self.stages + self.stage) * num_layers + jnp.arange(num_layers)
        batch = _take(self.inputs.batch, jnp.maximum(microbatch, 0))
        return params, batch, layer_ids, self.inputs.key_data

    def forward(self, known: PyTree, x: jax.Array) -> tuple[jax.Array, Callable]:
        """Runs one chunk; returns its output and its vjp with respect to (parameters, x)."""
        params, *rest = known
        return jax.vjp(lambda params, x: self.program.chunk(params, x, *rest), params, x)

    @jax.named_scope("forward_slot")
    def forward_slot(
        self, work: Work, x: jax.Array, *, has_bubbles: bool
    ) -> tuple[jax.Array, PyTree]:
        """Runs a chunk on `x`, or on the embedding at the start; returns (y, residuals)."""
        known = self.known(work.microbatch, work.chunk)
        starts = self._is_virtual_stage(work.chunk, 0)

        def run(known, x):
            embedded = lambda: self.program.embed(self.inputs.outer, known[1], known[3])
            x = embedded() if starts is True else self._choose(starts, embedded, lambda: x)
            if not self.trains:
                params, *rest = known
                return self.program.chunk(params, x, *rest), []
            y, vjp = self.forward(known, x)
            return y, self.plan.split(vjp)

        if not has_bubbles:
            return run(known, x)
        if self.skip_bubbles:
            stored = self.plan.stored if self.trains else []
            idle = jax.tree.map(self._bubble, (self.x_shape, list(stored)))
            return lax.cond(work.valid, run, lambda *_: idle, known, x)
        return run(known, jnp.where(work.valid, x, self._bubble(self.x_shape)))

    @jax.named_scope("head_slot")
    def head_slot(
        self, microbatch: jax.Array, y: jax.Array, totals: Totals, *, always: bool
    ) -> tuple[Totals, jax.Array]:
        """Adds this stage's share of the loss of the last stage's `y`; returns (totals, dy)."""

        def run(y, totals):
            batch = _take(self.inputs.batch, jnp.maximum(microbatch, 0))
            share = y
            if self.stages > 1:
                share, batch = self.tokens.scatter(y), self.tokens.own(batch, self.stage)
            head = lambda outer, share: self.program.head(outer, share, batch)
            if not self.trains:
                return _add_loss(totals, *head(self.inputs.outer, share)), y
            loss, vjp, weight = jax.vjp(head, self.inputs.outer, share, has_aux=True)
            scale = self.inputs.loss_scale
            outer_grads, dy = vjp(jnp.ones_like(loss) if scale is None else scale)
            if self.stages > 1:
                dy = self.tokens.gather(dy)
            totals = _add_loss(totals, loss, weight)
            return totals._replace(outer_grads=_add(totals.outer_grads, outer_grads)), dy

        if always:
            return run(y, totals)
        # The predicate is the same on every device, so the collectives inside are safe.
        idle = lambda y, totals: (totals, jnp.zeros_like(y))
        return lax.cond(microbatch >= 0, run, idle, y, totals)

    @jax.named_scope("backward_slot")
    def backward_slot(
        self, work: Work, stored: PyTree, dy: jax.Array, totals: Totals, *, has_bubbles: bool
    ) -> tuple[Totals, jax.Array]:
        """Adds the gradients of one chunk, given that of its output; returns (totals, dx)."""
        known = self.known(work.microbatch, work.chunk)
        masked = has_bubbles and not self.skip_bubbles
        if masked:
            dy = jnp.where(work.valid, dy, self._bubble(self.x_shape))

        def run(known, stored, dy, totals):
            block_grads, dx = self.plan.join(stored, known)(dy)
            # NaN in a bubble's residuals would survive a masked `dy` (0 * NaN): mask the gradients.
            if masked:
                block_grads = _where(work.valid, block_grads)
            totals = totals._replace(
                block_grads=self._add_to_chunk(totals.block_grads, block_grads, work.chunk)
            )
            return self._add_embedding(work, known, dx, totals, masked), dx

        if has_bubbles and self.skip_bubbles:
            idle = lambda known, stored, dy, totals: (totals, self._bubble(self.x_shape))
            return lax.cond(work.valid, run, idle, known, stored, dy, totals)
        return run(known, stored, dy, totals)

    def output_gradient(self, work: Work, from_head: jax.Array, received: jax.Array) -> jax.Array:
        """What a backward slot starts from: the head's gradient at the end, else the received."""
        ends = self._is_virtual_stage(work.chunk, self.schedule.chunks - 1, self.stages - 1)
        return from_head if ends is True else jnp.where(ends, from_head, received)

    def send(self, x: jax.Array, step: int) -> jax.Array:
        """Hands `x` to the next stage (step +1) or the previous one (-1)."""
        if self.stages == 1:
            return x
        pairs = [(source, (source + step) % self.stages) for source in range(self.stages)]
        if self.schedule.chunks == 1:  # without chunks nothing goes around
            pairs = [(source, target) for source, target in pairs if target - source == step]
        with jax.named_scope("to_next_stage" if step > 0 else "to_previous_stage"):
            return lax.ppermute(x, "stage", pairs)

    def _add_embedding(
        self, work: Work, known: PyTree, dx: jax.Array, totals: Totals, masked: bool
    ) -> Totals:
        """Adds the embedding's gradient where the chunk is the model's first."""
        _, batch, _, key_data = known
        starts = self._is_virtual_stage(work.chunk, 0)

        def run(dx, outer_grads):
            embed = lambda outer: self.program.embed(outer, batch, key_data)
            (grads,) = jax.vjp(embed, self.inputs.outer)[1](dx)
            return _add(outer_grads, grads)

        if starts is True:
            return totals._replace(outer_grads=run(dx, totals.outer_grads))
        if self.skip_bubbles:
            return totals._replace(
                outer_grads=lax.cond(starts, run, lambda _, grads: grads, dx, totals.outer_grads)
            )
        valid = starts & work.valid if masked else starts
        dx = jnp.where(valid, dx, jnp.zeros_like(dx))
        return totals._replace(outer_grads=run(dx, totals.outer_grads))

    def _add_to_chunk(self, totals: PyTree, grads: PyTree, chunk: jax.Array) -> PyTree:
        if self.schedule.chunks == 1:
            return _add(totals, jax.tree.map(lambda grad: grad[None], grads))
        add = lambda total, grad: total.at[chunk].add(grad.astype(total.dtype))
        return jax.tree.map(add, totals, grads)

    def _is_virtual_stage(self, chunk: jax.Array, wanted_chunk: int, wanted_stage: int = 0):
        """Whether a slot is at one end of the model; the Python `True` when there is one stage."""
        if self.stages == 1:
            return True
        return (self.stage == wanted_stage) & (chunk == wanted_chunk)

    def _choose(self, predicate: jax.Array, yes: Callable, no: Callable) -> jax.Array:
        if self.skip_bubbles:
            return lax.cond(predicate, yes, no)
        return jnp.where(predicate, yes(), no())

    def _bubble(self, shape: jax.ShapeDtypeStruct) -> jax.Array:
        inexact = jnp.issubdtype(shape.dtype, jnp.inexact)
        return jnp.full(shape.shape, self.bubble_value if inexact else 0, shape.dtype)


def _take(tree: PyTree, index: jax.Array | int) -> PyTree:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, False), tree)


def _add(totals: PyTree, grads: PyTree) -> PyTree:
    return jax.tree.map(lambda total, grad: total + grad.astype(total.dtype), totals, grads)


def _add_loss(totals: Totals, loss: jax.Array, weight: jax.Array) -> Totals:
    return totals._replace(loss_sum=totals.loss_sum + loss, weight_sum=totals.weight_sum + weight)


def _where(valid: jax.Array, grads: PyTree) -> PyTree:
    return jax.tree.map(lambda grad: jnp.where(valid, grad, jnp.zeros_like(grad)), grads)
