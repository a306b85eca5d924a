"""Which updates are made: the guard against losses and gradients that would ruin a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

# What f16 must hold is a gradient summed over one microbatch, not a mean: its largest entry was
# measured to be half the number of tokens when training starts. 2^3 leaves room for 16,000 of them.
INITIAL_SCALE = 2.0**3
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-14, 2.0**24
GROWTH_STEPS = 2000
"""Good updates in a row after which the loss scale is doubled."""

MEMORY_STEPS = 100
"""Updates over which the loss's running statistics forget; the fewest that can tell a spike."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guard:
    """What is remembered from update to update; the same scalars whatever the strategy.

    Attributes:
      skipped: int32, updates skipped so far.
      skipped_in_a_row: int32, consecutive skipped updates. An overflow in fp16, which a
        smaller loss scale cures, is not among these.
      loss_scale: f32, of fp16; other precisions carry it along, so that fp16 can take over.
      good_steps: int32, fp16 updates since the scale was last changed.
      loss_mean: f32, running mean of the losses of the updates made.
      loss_variance: f32, their running variance.
      loss_count: int32, how many they were.
    """

    skipped: jax.Array
    skipped_in_a_row: jax.Array
    loss_scale: jax.Array
    good_steps: jax.Array
    loss_mean: jax.Array
    loss_variance: jax.Array
    loss_count: jax.Array

    @classmethod
    def fresh(cls) -> Guard:
        """Returns the guard of a run that has made no update."""
        count, number = jnp.int32(0), jnp.float32(0)
        return cls(
            skipped=count,
            skipped_in_a_row=count,
            loss_scale=jnp.float32(INITIAL_SCALE),
            good_steps=count,
            loss_mean=number,
            loss_variance=number,
            loss_count=count,
        )


def should_update(
    guard: Guard,
    metrics: Mapping[str, jax.Array],
    *,
    scaled: bool = False,
    spike_sigmas: float | None = None,
) -> tuple[jax.Array, Guard]:
    """Returns whether an update is to be made, and the guard after it.

    It is not when loss or gradient norm are not finite, or when the loss is a spike: more than
    `spike_sigmas` standard deviations above its running mean.

    Args:
      metrics: `loss`, `weight` and `grad_norm` of the update, the same on every device.
      scaled: whether the gradients were computed with `guard.loss_scale` (fp16).
      spike_sigmas: None: no loss is a spike.
    """
    loss, finite_loss = metrics["loss"], jnp.isfinite(metrics["loss"])
    good = finite_loss & jnp.isfinite(metrics["grad_norm"])
    overflow = finite_loss & ~good & (guard.loss_scale > SMALLEST_SCALE) & scaled
    if spike_sigmas is not None:
        limit = guard.loss_mean + spike_sigmas * jnp.sqrt(guard.loss_variance)
        good &= (loss <= limit) | (guard.loss_count < MEMORY_STEPS)
    scale, good_steps = _next_scale(guard, good, overflow) if scaled else _scale(guard)
    mean, variance, count = _next_statistics(guard, loss, good & (metrics["weight"] > 0))
    in_a_row = guard.skipped_in_a_row + ~overflow
    return good, Guard(
        skipped=guard.skipped + ~good,
        skipped_in_a_row=jnp.where(good, 0, in_a_row),
        loss_scale=scale,
        good_steps=good_steps,
        loss_mean=mean,
        loss_variance=variance,
        loss_count=count,
    )


def _scale(guard: Guard) -> tuple[jax.Array, jax.Array]:
    return guard.loss_scale, guard.good_steps


def _next_scale(guard: Guard, good: jax.Array, overflow: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Dynamic loss scaling, Micikevicius et al. 2018 (arXiv:1710.03740), section 3.2.

    Halved by an overflow, doubled after `GROWTH_STEPS` good updates. A loss that is itself not
    finite is no overflow of the gradients: it leaves the scale alone.
    """
    scale, good_steps = guard.loss_scale, guard.good_steps + good
    grows = good_steps >= GROWTH_STEPS
    factor = jnp.where(overflow, 0.5, jnp.where(grows, 2.0, 1.0))
    scale = jnp.clip(scale * factor, SMALLEST_SCALE, LARGEST_SCALE)
    return scale, jnp.where(overflow | grows, 0, good_steps)


def _next_statistics(
    guard: Guard, loss: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Exponential moving mean and variance of the loss, without bias from the first updates.

    The weights of all losses so far add up to one from the first on: the newest has
    (1 - d) / (1 - d^n), which is 1 for n = 1 and falls to 1 - d.
    """
    count = guard.loss_count + counts
    decay = 1 - 1 / MEMORY_STEPS
    newest = (1 - decay) / (1 - decay ** jnp.maximum(count, 1).astype(jnp.float32))
    difference = loss - guard.loss_mean
    mean = guard.loss_mean + newest * difference
    variance = (1 - newest) * (guard.loss_variance + newest * jnp.square(difference))
    return (
        jnp.where(counts, mean, guard.loss_mean),
        jnp.where(counts, variance, guard.loss_variance),
        count,
    )
