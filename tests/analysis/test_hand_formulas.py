"""Bytes of compiled steps, against formulas written out from the sizes of model and layout.

float32 on CPU, so that a gathered entry and a reduced one are 4 bytes each. All is what ONE device
sends in a step. XLA:CPU keeps what is written, but for one thing: where several matmuls read one
input, XLA:TPU adds up their parts of its gradient before it reduces them, and XLA:CPU reduces each.
"""

from __future__ import annotations

import jax
import optax
import pytest
import tiny

import hybrid_jax as hj

L, V, D, N, H, F, T = 4, 64, 16, 4, 4, 32, 16
"""Layers, vocabulary, width, heads (as many for keys), entries of a head and of the MLP, tokens."""

LAYER = 4 * D * N * H + 3 * D * F  # q, k, v, o; up, gate, down
NORMS = 2 * D
OUTER = 2 * V * D + D  # embedding, head and its norm
SCALARS = 3  # loss, weight and gradient norm are summed over all devices


def sent(batch: int, **fields) -> dict[tuple[str, str], float]:
    """Bytes by (axes, kind) of a step of `batch` examples of T tokens."""
    # As on TPU, idle slots compute; skipped ones would be branches that need not run.
    strategy = hj.Strategy(precision="f32", skip_bubbles=False, **fields)
    model = tiny.decoder(num_kv_heads=N, max_length=T)
    mesh = hj.make_mesh(strategy, jax.devices()[: strategy.num_devices])
    train = hj.make_train_step(model, optax.adamw(1e-3), strategy, mesh)
    ledger = hj.inspect(train, (batch, T)).ledger
    assert not ledger.unknown_loops
    totals: dict[tuple[str, str], float] = {}
    for total in ledger.by_axis():
        key = "+".join(total.axes), total.kind
        totals[key] = totals.get(key, 0) + total.wire_bytes
    return totals


def once(size: int, entries: float) -> float:
    """Bytes of gathering, or reduce-scattering, so many entries over `size` devices."""
    return (size - 1) / size * 4 * entries


def test_data_only_reduces_every_gradient_once():
    assert sent(16, data=8, microbatches=2, zero=0) == {
        ("data", "all-reduce"): 2 * once(8, L * (LAYER + NORMS) + OUTER + SCALARS),
    }


def test_zero_1_gathers_every_parameter_and_scatters_every_gradient_once():
    parameters = L * (LAYER + NORMS) + OUTER
    assert sent(16, data=8, microbatches=2, zero=1) == {
        ("data", "all-gather"): once(8, parameters),
        ("data", "reduce-scatter"): once(8, parameters),
        ("data", "all-reduce"): 2 * once(8, SCALARS),
    }


def test_zero_3_gathers_a_layer_forward_and_backward_of_every_microbatch():
    microbatches, layers = 2, L * (LAYER + NORMS)
    assert sent(16, data=8, microbatches=microbatches, zero=3) == {
        ("data", "all-gather"): once(8, 2 * microbatches * layers + OUTER),
        ("data", "reduce-scatter"): once(8, microbatches * layers + OUTER),
        ("data", "all-reduce"): 2 * once(8, SCALARS),
    }


@pytest.mark.parametrize(("remat", "recomputed"), [("none", 0), ("layer", 1)])
def test_model_only_reduces_behind_row_parallel_kernels(remat, recomputed):
    """`recomputed`: the attention branch's sum is needed again; what comes after it is not."""
    microbatches, x = 2, T * D
    forward = 2  # behind o and down
    backward = 3 + 2  # gradients of the inputs of q, k, v and of up, gate; on TPU 1 + 1
    ends = 2 * x  # rows of the embedding lie apart; gradient of the logits' input
    softmax = 3 * T  # maximum, sum and target's logit of each token
    norm = 9  # the squares of each sharded gradient
    entries = microbatches * (L * (forward + backward + recomputed) * x + ends + softmax) + norm
    assert sent(microbatches, model=4, microbatches=microbatches, remat=remat) == {
        ("model", "all-reduce"): 2 * once(4, entries),
    }


def test_stage_only_hands_on_and_shares_the_head():
    stages, microbatches = 4, 8
    x = 4 * T * D  # four examples a microbatch, which the stages share at the head
    ticks = microbatches + stages - 1
    assert sent(32, stage=stages, microbatches=microbatches) == {
        ("stage", "collective-permute"): 2 * ticks * 4 * x,  # x on and dx back
        ("stage", "all-to-all"): microbatches * once(stages, x),  # tokens to the heads
        ("stage", "all-gather"): microbatches * once(stages, x) + once(stages, OUTER),
        ("stage", "reduce-scatter"): once(stages, OUTER),
        ("stage", "all-reduce"): 2 * once(stages, SCALARS),
    }


def test_stage_data_and_model():
    stages, data, model, microbatches = 2, 2, 2, 4
    x = 4 * T * D  # 32 examples over 2 data shards and 4 microbatches
    ticks = microbatches + stages - 1
    layers = L / stages * (LAYER / model + NORMS)
    outer = 2 * V * D / model + D
    # Idle slots reduce too. Forward 2, recomputation 1, backward 5; embedding in every tick.
    slots = ticks * L // stages
    on_model = slots * 8 * x + ticks * x + microbatches * (x + 3 * 4 * T) / stages + 9
    assert sent(32, stage=stages, data=data, model=model, microbatches=microbatches) == {
        # Two stages: the last tick's dx, of the first stage's input, goes nowhere.
        ("stage", "collective-permute"): (2 * ticks - 1) * 4 * x,
        ("stage", "all-to-all"): microbatches * once(stages, x),
        ("stage", "all-gather"): microbatches * once(stages, x) + once(stages, outer),
        ("stage", "reduce-scatter"): once(stages, outer),
        ("stage+data", "all-reduce"): 2 * once(4, SCALARS),
        # The outer parameters are split over both axes: `data` moves a stage's part of them.
        ("data", "all-gather"): once(data, layers + outer / stages),
        ("data", "reduce-scatter"): once(data, layers + outer / stages),
        ("model", "all-reduce"): 2 * once(model, on_model),
    }
