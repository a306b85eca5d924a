"""The planner's bytes are those of the compiled step, axis by axis."""

from __future__ import annotations

import jax
import optax
import pytest
import tiny

import hybrid_jax as hj
from hybrid_jax.planning.traffic import transfers

LENGTH = 16
SCALARS = 100
"""Bytes a device may send beyond the plan: sums of loss, weight and squared gradients."""


def planned(config, strategy, batch, length) -> dict[str, float]:
    """Bytes one device sends in a step, by mesh axis."""
    total: dict[str, float] = {}
    for transfer in transfers(config, strategy, batch, length):
        size = getattr(strategy, transfer.axis)
        total[transfer.axis] = total.get(transfer.axis, 0) + transfer.sent_bytes(size)
    return total


LAYOUTS = [
    {"data": 8, "zero": 0, "microbatches": 2},
    {"data": 8, "zero": 1, "microbatches": 2},
    {"data": 8, "zero": 3, "microbatches": 2},
    {"replica": 2, "data": 4, "zero": 1},
    {"stage": 4, "microbatches": 8, "zero": 1},
    {"stage": 4, "microbatches": 1, "zero": 1},
    {"stage": 2, "microbatches": 1, "zero": 1},
    {"stage": 4, "microbatches": 4, "zero": 0, "schedule": "gpipe"},
    {"stage": 2, "microbatches": 4, "zero": 1, "schedule": "interleaved", "chunks": 2},
    {"stage": 2, "data": 2, "model": 2, "microbatches": 4, "zero": 1},
    {"stage": 2, "data": 2, "model": 2, "microbatches": 4, "zero": 3, "remat": "none"},
]


@pytest.mark.parametrize("fields", LAYOUTS, ids=str)
def test_plan_is_what_the_compiled_step_sends(fields):
    strategy = hj.Strategy(precision="f32", skip_bubbles=False, **fields)
    model = tiny.decoder(num_kv_heads=4, max_length=LENGTH)
    mesh = hj.make_mesh(strategy, jax.devices()[: strategy.num_devices])
    train = hj.make_train_step(model, optax.adamw(1e-3), strategy, mesh)
    batch = 4 * strategy.replica * strategy.data * strategy.microbatches
    ledger = hj.inspect(train, (batch, LENGTH)).ledger
    plan = planned(model.config, strategy, batch, LENGTH)
    # XLA:TPU adds the parts of an input's gradient up before it reduces them; XLA:CPU reduces three
    # for q, k and v instead of one, and two for up and gate.
    slots = (strategy.microbatches + strategy.stage - 1) * 4 // strategy.stage
    x = 4 * 4 * LENGTH * 16
    extra = {"model": slots * 3 * x}
    assert plan.keys() == {axis for axis, size in strategy.axis_sizes.items() if size > 1}
    for axis, num_bytes in plan.items():
        rows = [row for row in ledger.rows if row.axes == (axis,)]
        # A branch is counted in every tick; it is the head, which runs once a microbatch.
        runs = [strategy.microbatches / row.count if row.conditional else 1 for row in rows]
        sent = sum(row.wire_bytes * share for row, share in zip(rows, runs, strict=True))
        assert 0 <= sent - num_bytes - extra.get(axis, 0) <= SCALARS, axis
