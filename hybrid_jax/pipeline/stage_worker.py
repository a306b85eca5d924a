"""One device's share of a step: where it stands, what it holds, what its slots do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_jax.pipeline import ring
from hybrid_jax.pipeline.head_split import split_head
from hybrid_jax.pipeline.program import StageProgram, layer_ids
from hybrid_jax.pipeline.schedules import Schedule

PyTree = Any
Carry = PyTree


class Inputs(NamedTuple):
    """What one device brings to the step.

    Attributes:
      shared: compute copies of the parameters that every stage holds (embedding, head).
      blocks: compute copies of this stage's layers, leaves [chunks, Lc, ...].
      batch: leaves [M, b, ...].
      key_data: raw PRNG key of this step.
      cotangents: what the backward pass starts from, a scalar for each sum that is trained on.
    """

    shared: PyTree
    blocks: PyTree
    batch: dict[str, jax.Array]
    key_data: jax.Array
    cotangents: dict[str, jax.Array]


class Accumulators(NamedTuple):
    """Sums over this device's microbatches and its share of the tokens; gradients are f32."""

    sums: dict[str, jax.Array]
    shared_grads: PyTree
    block_grads: PyTree


class SlotTask(NamedTuple):
    """Which (microbatch, chunk) a slot works on, and the ring slot of its residuals."""

    microbatch: jax.Array
    chunk: jax.Array
    slot: jax.Array

    @property
    def valid(self) -> jax.Array:
        """False in a bubble."""
        return self.microbatch >= 0


class StageWorker:
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
        self.carry = jax.eval_shape(program.embed, inputs.shared, first, inputs.key_data)
        self.sums = jax.eval_shape(program.head, inputs.shared, self.carry, first)
        if self.stages > 1:
            self.split = split_head(self.carry, first, self.stages, program.head_dims)
        if self.trains:
            self.plan = ring.plan_residuals(self.forward, self.recomputable(0, 0), self.carry)

    def recomputable(self, microbatch: jax.Array | int, chunk: jax.Array | int) -> PyTree:
        """Inputs of a forward slot that the backward slot can look up again: never stored."""
        if self.schedule.chunks == 1:
            chunk = 0
        params = _take(self.inputs.blocks, chunk)
        leaves = jax.tree.leaves(params)
        num_layers = leaves[0].shape[0] if leaves else 0
        depths = layer_ids(chunk, self.stage, self.stages, num_layers)
        batch = _take(self.inputs.batch, jnp.maximum(microbatch, 0))
        return params, batch, depths, self.inputs.key_data

    def forward(self, recomputable: PyTree, carry: Carry) -> tuple[Carry, Callable]:
        """Runs one chunk; returns its output and its vjp with respect to (parameters, carry)."""
        params, *rest = recomputable
        return jax.vjp(
            lambda params, carry: self.program.chunk(params, carry, *rest), params, carry
        )

    @jax.named_scope("forward_slot")
    def forward_slot(self, task: SlotTask, x: Carry, *, has_bubbles: bool) -> tuple[Carry, PyTree]:
        """Runs a chunk on `x`, or on the embedding at the start; returns (y, residuals)."""
        recomputable = self.recomputable(task.microbatch, task.chunk)
        starts = self._is_virtual_stage(task.chunk, 0)

        def run(recomputable, x):
            params, *rest = recomputable
            embedded = lambda: self.program.embed(self.inputs.shared, rest[0], rest[2])
            x = embedded() if starts is True else self._choose(starts, embedded, lambda: x)
            if not self.trains:
                return self.program.chunk(params, x, *rest), []
            y, vjp = self.forward(recomputable, x)
            return y, self.plan.split(vjp)

        if not has_bubbles:
            return run(recomputable, x)
        if self.skip_bubbles:
            stored = self.plan.stored if self.trains else []
            idle = self._bubble((self.carry, list(stored)))
            return lax.cond(task.valid, run, lambda *_: idle, recomputable, x)
        return run(recomputable, _where(task.valid, x, self._bubble(self.carry)))

    @jax.named_scope("head_slot")
    def head_slot(
        self, microbatch: jax.Array, y: Carry, totals: Accumulators, *, always: bool
    ) -> tuple[Accumulators, Carry]:
        """Adds this stage's share of the sums of the last stage's `y`; returns (totals, dy)."""
        cotangents = self.inputs.cotangents

        def run(y, totals):
            batch = _take(self.inputs.batch, jnp.maximum(microbatch, 0))
            share = y
            if self.stages > 1:
                share = self.split.scatter(y)
                batch = self.split.own(batch, self.program.batch_axes, self.stage)

            def head(shared, share):
                sums = self.program.head(shared, share, batch)
                return {name: sums[name] for name in cotangents}, sums

            if not self.trains:
                _, sums = head(self.inputs.shared, share)
                return totals._replace(sums=_add(totals.sums, sums)), y
            _, vjp, sums = jax.vjp(head, self.inputs.shared, share, has_aux=True)
            shared_grads, dy = vjp(cotangents)
            if self.stages > 1:
                dy = self.split.gather(dy)
            shared_grads = _add(totals.shared_grads, shared_grads)
            return totals._replace(sums=_add(totals.sums, sums), shared_grads=shared_grads), dy

        if always:
            return run(y, totals)
        # The predicate is the same on every device, so the collectives inside are safe.
        idle = lambda y, totals: (totals, jax.tree.map(jnp.zeros_like, y))
        return lax.cond(microbatch >= 0, run, idle, y, totals)

    @jax.named_scope("backward_slot")
    def backward_slot(
        self, task: SlotTask, stored: PyTree, dy: Carry, totals: Accumulators, *, has_bubbles: bool
    ) -> tuple[Accumulators, Carry]:
        """Adds the gradients of one chunk, given that of its output; returns (totals, dx)."""
        recomputable = self.recomputable(task.microbatch, task.chunk)
        masked = has_bubbles and not self.skip_bubbles
        if masked:
            dy = _where(task.valid, dy, self._bubble(self.carry))

        def run(recomputable, stored, dy, totals):
            block_grads, dx = self.plan.join(stored, recomputable)(dy)
            # NaN in a bubble's residuals would survive a masked `dy` (0 * NaN): mask the gradients.
            if masked:
                block_grads = _or_zero(task.valid, block_grads)
            totals = totals._replace(
                block_grads=self._add_to_chunk(totals.block_grads, block_grads, task.chunk)
            )
            return self._add_embedding(task, recomputable, dx, totals, masked), dx

        if has_bubbles and self.skip_bubbles:
            idle = lambda recomputable, stored, dy, totals: (totals, self._bubble(self.carry))
            return lax.cond(task.valid, run, idle, recomputable, stored, dy, totals)
        return run(recomputable, stored, dy, totals)

    def output_gradient(self, task: SlotTask, from_head: Carry, received: Carry) -> Carry:
        """What a backward slot starts from: the head's gradient at the end, else the received."""
        ends = self._is_virtual_stage(task.chunk, self.schedule.chunks - 1, self.stages - 1)
        return from_head if ends is True else _where(ends, from_head, received)

    def send(self, carry: Carry, step: int) -> Carry:
        """Hands the carry to the next stage (step +1) or the previous one (-1)."""
        if self.stages == 1:
            return carry
        pairs = [(source, (source + step) % self.stages) for source in range(self.stages)]
        if self.schedule.chunks == 1:  # without chunks nothing goes around
            pairs = [(source, target) for source, target in pairs if target - source == step]
        with jax.named_scope("to_next_stage" if step > 0 else "to_previous_stage"):
            return jax.tree.map(lambda x: lax.ppermute(x, "stage", pairs), carry)

    def _add_embedding(
        self, task: SlotTask, recomputable: PyTree, dx: Carry, totals: Accumulators, masked: bool
    ) -> Accumulators:
        """Adds the embedding's gradient where the chunk is the model's first."""
        _, batch, _, key_data = recomputable
        starts = self._is_virtual_stage(task.chunk, 0)

        def run(dx, shared_grads):
            embed = lambda shared: self.program.embed(shared, batch, key_data)
            (grads,) = jax.vjp(embed, self.inputs.shared)[1](dx)
            return _add(shared_grads, grads)

        grads = totals.shared_grads
        if starts is True:
            return totals._replace(shared_grads=run(dx, grads))
        if self.skip_bubbles:
            grads = lax.cond(starts, run, lambda _, grads: grads, dx, grads)
            return totals._replace(shared_grads=grads)
        valid = starts & task.valid if masked else starts
        return totals._replace(shared_grads=run(_or_zero(valid, dx), grads))

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

    def _choose(self, predicate: jax.Array, yes: Callable, no: Callable) -> Carry:
        if self.skip_bubbles:
            return lax.cond(predicate, yes, no)
        return _where(predicate, yes(), no())

    def _bubble(self, shapes: PyTree) -> PyTree:
        def fill(shape):
            inexact = jnp.issubdtype(shape.dtype, jnp.inexact)
            return jnp.full(shape.shape, self.bubble_value if inexact else 0, shape.dtype)

        return jax.tree.map(fill, shapes)


def _take(tree: PyTree, index: jax.Array | int) -> PyTree:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, False), tree)


def _add(totals: PyTree, grads: PyTree) -> PyTree:
    return jax.tree.map(lambda total, grad: total + grad.astype(total.dtype), totals, grads)


def _where(predicate: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda y, n: jnp.where(predicate, y, n), yes, no)


def _or_zero(valid: jax.Array, tree: PyTree) -> PyTree:
    return _where(valid, tree, jax.tree.map(jnp.zeros_like, tree))
