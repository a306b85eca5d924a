"""Every layout trains in bf16 as one device does, and draws the same dropout masks."""

import functools
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from test_layouts import LAYOUTS
from tiny import decoder, ragged_batch

from hybrid_jax import Strategy, check_parity
from hybrid_jax.models import Decoder
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.train.step import make_train_step

STEPS, BATCH = 20, 32
"""The batch divides into four microbatches on eight data shards, so that one serves all layouts."""

# `LAYOUTS` has each factorisation of 8 in both styles. Either test takes one of them, the other
# test the other; both see both styles, the model axis, interleaved schedules and ZeRO-3.
BF16_LAYOUTS = [LAYOUTS[2 * pair + pair % 2] for pair in range(len(LAYOUTS) // 2)]
DROPOUT_LAYOUTS = [layout for layout in LAYOUTS if layout not in BF16_LAYOUTS]


def model_for(style: str, dropout: float = 0.0) -> Decoder:
    """One that every layout can cut, so that all are compared with one run of one device."""
    heads = {"num_heads": 8, "num_kv_heads": {"gpt2": 8, "llama": 4}[style]}
    return decoder(style, num_layers=8, dropout=dropout, **heads)


def bf16_losses(style: str, strategy: Strategy) -> list[float]:
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    train = make_train_step(model_for(style), optax.adam(3e-3), strategy, mesh)
    state, losses = train.init(jax.random.key(0)), []
    batch = train.put(ragged_batch(BATCH))
    for _ in range(STEPS):
        state, metrics = train.step(state, batch)
        losses.append(metrics["loss"])
    return jax.device_get(losses)


@functools.cache
def one_device_bf16_losses(style: str) -> list[float]:
    return bf16_losses(style, Strategy(precision="bf16"))


def name(layout) -> str:
    return "-".join(map(str, layout))


def test_each_test_sees_every_factorisation():
    for layouts in (BF16_LAYOUTS, DROPOUT_LAYOUTS):
        sizes = {(layout.stage, layout.data, layout.model) for layout in LAYOUTS}
        assert {(layout.stage, layout.data, layout.model) for layout in layouts} == sizes
        assert {"gpt2", "llama"} == {layout.style for layout in layouts if layout.model > 1}
        assert ("interleaved", 3) in {(layout.schedule, layout.zero) for layout in layouts}


@pytest.mark.parametrize("layout", BF16_LAYOUTS, ids=name)
def test_bf16_trains_like_one_device(layout):
    expected = one_device_bf16_losses(layout.style)
    losses = bf16_losses(layout.style, replace(layout.strategy(), precision="bf16"))
    assert expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=2e-2)


@pytest.mark.parametrize("layout", DROPOUT_LAYOUTS, ids=name)
def test_dropout_draws_the_masks_of_one_device(layout):
    model = model_for(layout.style, dropout=0.1)
    report = check_parity(model, [layout.strategy()], batch=ragged_batch(BATCH), seed=3)
    report.raise_if_different()
