"""The plain-JAX step of one strategy, compiled, as one of the programs that are timed."""

from __future__ import annotations

import jax
import numpy as np
import optax

from hybrid_jax.benchmark.baseline import make_plain_step
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.models.contract import Model
from hybrid_jax.timing import Program, compile_program


def plain_program(
    model: Model,
    tx: optax.GradientTransformation,
    strategy: Strategy,
    clip_norm: float | None,
    batch: dict[str, np.ndarray],
) -> Program:
    """Returns the plain step with `strategy`'s microbatches, remat and precision, on one device."""
    init, step = make_plain_step(
        model,
        tx,
        microbatches=strategy.microbatches,
        remat=strategy.remat,
        precision=strategy.precision,
        clip_norm=clip_norm,
    )
    state, placed = init(jax.random.key(0)), jax.device_put(batch, jax.devices()[0])
    return compile_program(lambda: step.lower(state, placed), state, placed)
