"""Runs a schedule: one scan over the ticks of each segment, on every stage at once.

Everything here is the program of ONE device inside a `shard_map` that is manual over `stage`. In a
tick a device may run one forward (F) slot, the loss head, and one backward (B) slot; then
activations move one stage on and their gradients one stage back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hybrid_jax.pipeline import ring
from hybrid_jax.pipeline.program import StageProgram
from hybrid_jax.pipeline.schedules import Schedule, Segment
from hybrid_jax.pipeline.stage_worker import Accumulators, Inputs, SlotTask, StageWorker
from hybrid_jax.sharding.order import depend_on

PyTree = Any


class TickTasks(NamedTuple):
    """One tick of the schedule as one stage reads it."""

    forward: SlotTask
    backward: SlotTask
    head: jax.Array


class InFlight(NamedTuple):
    """What passes from tick to tick.

    Attributes:
      x: the activation that the previous stage sent.
      dx: the activation gradient that the next stage sent.
      residuals: of the microbatches in flight, leaves [num_slots, ...].
      outputs: chunk outputs that wait for their head, leaves [num_slots, ...] (gpipe only).
      totals: sums so far.
    """

    x: PyTree
    dx: PyTree
    residuals: list[jax.Array]
    outputs: PyTree
    totals: Accumulators


def execute(
    schedule: Schedule,
    program: StageProgram,
    inputs: Inputs,
    *,
    skip_bubbles: bool,
    ordered: bool = False,
    bubble_value: float = 0.0,
) -> Accumulators:
    """Runs every microbatch through every layer as `schedule` says; returns sums and gradients.

    Args:
      skip_bubbles: idle slots are skipped by a `cond` that differs between stages (right where
        virtual devices share cores) instead of computed and masked.
      ordered: the B slot of a tick waits for its F slot; see `hybrid_jax.sharding.order`.
      bubble_value: what idle slots compute on; NaN in tests, to show that nothing leaks.
    """
    worker = StageWorker(
        schedule, program, inputs, skip_bubbles=skip_bubbles, bubble_value=bubble_value
    )

    def column(table: np.ndarray) -> jax.Array:
        return jnp.asarray(table)[:, worker.stage]

    tasks = TickTasks(
        forward=SlotTask(*map(column, (schedule.f_microbatch, schedule.f_chunk, schedule.f_slot))),
        backward=SlotTask(*map(column, (schedule.b_microbatch, schedule.b_chunk, schedule.b_slot))),
        head=jnp.asarray(schedule.head),
    )
    state = _nothing_in_flight(worker)
    for segment in schedule.segments():
        ticks = jax.tree.map(lambda column, s=segment: column[s.start : s.stop], tasks)

        def tick(state, tasks, segment=segment):
            return _tick(worker, segment, state, tasks, ordered), None

        if segment.stop - segment.start == 1:  # needs no scan
            state, _ = tick(state, jax.tree.map(lambda column: column[0], ticks))
        else:
            state, _ = lax.scan(tick, state, ticks)
    return state.totals


def _nothing_in_flight(worker: StageWorker) -> InFlight:
    schedule, inputs = worker.schedule, worker.inputs
    zeros = lambda shapes: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    trained = (inputs.shared, inputs.blocks) if worker.trains else ((), ())
    grads = jax.tree.map(lambda param: jnp.zeros(param.shape, jnp.float32), trained)
    in_ring = worker.plan.stored if worker.trains and not schedule.fused else ()
    waiting = worker.carry if schedule.stores_outputs else None
    return InFlight(
        x=zeros(worker.carry),
        dx=zeros(worker.carry),
        residuals=ring.allocate(schedule.num_slots, list(in_ring)),
        outputs=ring.allocate(schedule.num_slots, waiting),
        totals=Accumulators(zeros(worker.sums), *grads),
    )


def _tick(
    worker: StageWorker, segment: Segment, state: InFlight, tasks: TickTasks, ordered: bool
) -> InFlight:
    """F slot, head, B slot, then one step along the pipeline in each direction."""
    schedule = worker.schedule
    ticks = slice(segment.start, segment.stop)
    x, dx, residuals, outputs, totals = state
    y, dy, stored = x, dx, []
    if segment.forward:
        has_bubbles = bool((schedule.f_microbatch[ticks] < 0).any())
        y, stored = worker.forward_slot(tasks.forward, x, has_bubbles=has_bubbles)
        if residuals:
            residuals = ring.write(residuals, tasks.forward.slot, stored)
        if schedule.stores_outputs:
            outputs = ring.write(outputs, tasks.forward.slot, y)
    if segment.head != "none":
        finished = ring.read(outputs, tasks.backward.slot) if schedule.stores_outputs else y
        always = segment.head == "all"
        totals, from_head = worker.head_slot(tasks.head, finished, totals, always=always)
        dy = worker.output_gradient(tasks.backward, from_head, dx)
    if segment.backward:
        has_bubbles = bool((schedule.b_microbatch[ticks] < 0).any())
        if residuals:
            stored = ring.read(residuals, tasks.backward.slot)
        if ordered and segment.forward:
            dy = depend_on(dy, y)
        totals, dx = worker.backward_slot(
            tasks.backward, stored, dy, totals, has_bubbles=has_bubbles
        )
        dx = worker.send(dx, -1)
    if segment.forward:
        x = worker.send(y, +1)
    return InFlight(x, dx, residuals, outputs, totals)
