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

from hybrid_jax.pipeline import ring as ring_buffer
from hybrid_jax.pipeline.device import Device, Inputs, Totals, Work
from hybrid_jax.pipeline.program import StageProgram
from hybrid_jax.pipeline.schedules import Schedule, Segment
from hybrid_jax.sharding.order import after

PyTree = Any


class Row(NamedTuple):
    """One tick of the schedule as one stage reads it."""

    f: Work
    b: Work
    head: jax.Array


class Carry(NamedTuple):
    """What passes from tick to tick.

    Attributes:
      x: the activation that the previous stage sent.
      dx: the activation gradient that the next stage sent.
      residuals: of the microbatches in flight, leaves [num_slots, ...].
      outputs: chunk outputs that wait for their head, [num_slots, b, T, D] (gpipe only).
      totals: sums so far.
    """

    x: jax.Array
    dx: jax.Array
    residuals: PyTree
    outputs: PyTree
    totals: Totals


def execute(
    schedule: Schedule,
    program: StageProgram,
    inputs: Inputs,
    *,
    skip_bubbles: bool,
    ordered: bool = False,
    bubble_value: float = 0.0,
) -> Totals:
    """Runs every microbatch through every layer as `schedule` says; returns loss and gradients.

    Args:
      skip_bubbles: idle slots are skipped by a `cond` that differs between stages (right where
        virtual devices share cores) instead of computed and masked.
      ordered: the B slot of a tick waits for its F slot; see `hybrid_jax.sharding.order`.
      bubble_value: what idle slots compute on; NaN in tests, to show that nothing leaks.
    """
    device = Device(schedule, program, inputs, skip_bubbles=skip_bubbles, bubble_value=bubble_value)

    def column(table: np.ndarray) -> jax.Array:
        return jnp.asarray(table)[:, device.stage]

    rows = Row(
        f=Work(*map(column, (schedule.f_microbatch, schedule.f_chunk, schedule.f_slot))),
        b=Work(*map(column, (schedule.b_microbatch, schedule.b_chunk, schedule.b_slot))),
        head=jnp.asarray(schedule.head),
    )
    carry = _initial_carry(device)
    for segment in schedule.segments():
        carry = _run_segment(device, segment, carry, rows, ordered)
    return carry.totals


def _initial_carry(device: Device) -> Carry:
    """Nothing received, nothing in flight, nothing summed."""
    schedule, inputs = device.schedule, device.inputs
    x = jnp.zeros(device.x_shape.shape, device.x_shape.dtype)
    trained = (inputs.outer, inputs.blocks) if device.trains else ((), ())
    grads = jax.tree.map(lambda param: jnp.zeros(param.shape, jnp.float32), trained)
    totals = Totals(jnp.float32(0), jnp.float32(0), *grads)
    in_ring = device.plan.stored if device.trains and not schedule.fused else ()
    waiting = (device.x_shape,) if schedule.stores_outputs else ()
    residuals = ring_buffer.allocate(schedule.num_slots, list(in_ring))
    return Carry(x, x, residuals, ring_buffer.allocate(schedule.num_slots, waiting), totals)


def _run_segment(device: Device, segment: Segment, carry: Carry, rows: Row, ordered: bool) -> Carry:
    """Scans the ticks of one segment; a single tick needs no scan."""
    ticks = jax.tree.map(lambda column: column[segment.start : segment.stop], rows)
    tick = lambda carry, row: _tick(device, segment, carry, row, ordered)
    if segment.stop - segment.start == 1:
        return tick(carry, jax.tree.map(lambda column: column[0], ticks))
    return lax.scan(lambda carry, row: (tick(carry, row), None), carry, ticks)[0]


def _tick(device: Device, segment: Segment, carry: Carry, row: Row, ordered: bool) -> Carry:
    """F slot, head, B slot, then one step along the pipeline in each direction."""
    schedule = device.schedule
    ticks = slice(segment.start, segment.stop)
    x, dx, residuals, outputs, totals = carry
    y, dy, stored = x, dx, ()
    if segment.forward:
        has_bubbles = bool((schedule.f_microbatch[ticks] < 0).any())
        y, stored = device.forward_slot(row.f, x, has_bubbles=has_bubbles)
        if residuals:
            residuals = ring_buffer.write(residuals, row.f.slot, stored)
        if outputs:
            outputs = ring_buffer.write(outputs, row.f.slot, (y,))
    if segment.head != "none":
        finished = ring_buffer.read(outputs, row.b.slot)[0] if outputs else y
        always = segment.head == "all"
        totals, from_head = device.head_slot(row.head, finished, totals, always=always)
        dy = device.output_gradient(row.b, from_head, dx)
    if segment.backward:
        has_bubbles = bool((schedule.b_microbatch[ticks] < 0).any())
        if residuals:
            stored = ring_buffer.read(residuals, row.b.slot)
        if ordered and segment.forward:
            dy = after(dy, y)
        totals, dx = device.backward_slot(row.b, stored, dy, totals, has_bubbles=has_bubbles)
        dx = device.send(dx, -1)
    if segment.forward:
        x = device.send(y, +1)
    return Carry(x, dx, residuals, outputs, totals)
