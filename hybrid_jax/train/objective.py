"""What is trained on and what is reported: named sums, each divided by its own weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hybrid_jax.errors import UserError
from hybrid_jax.models.contract import Batch, Model, Sums
from hybrid_jax.sharding.constrain import MANUAL_AXES
from hybrid_jax.sharding.rules import BATCH_AXES
from hybrid_jax.train.zero import psum

OWN_NAMES = ("weight", "objective", "grad_norm", "skipped", "skipped_in_a_row", "loss_scale")
"""Metrics that the train step adds; no sum may have such a name."""

WeightedSums = dict[str, tuple[jax.Array, jax.Array]]


class Objective:
    """The sums of one model, on one device of a `shard_map` over the manual axes.

    The value of a sum is its total over all tokens divided by that of its weights; what is trained
    on is the sum of those in `model.losses`, times their coefficients. With a single loss nothing
    is known before the backward pass, and gradients are divided afterwards, once. With more, each
    starts its backward pass from what its weight is beside that of the first.

    Args:
      model: says the losses, and the weights of all sums.
      mesh: of the step.

    Raises:
      UserError: "loss" is not the first of the losses, a coefficient is 0, or a name is taken.
    """

    def __init__(self, model: Model, mesh: Mesh) -> None:
        self.model, self.mesh = model, mesh
        self.losses = dict(model.losses)
        if next(iter(self.losses), None) != "loss":
            raise UserError(
                f"losses={self.losses}: the first must be 'loss', which guards and logs look at."
            )
        for name, coefficient in self.losses.items():
            if not coefficient:
                raise UserError(f"losses[{name!r}] is 0: leave it out to report it only.")

    def local_weights(self, batch: Batch) -> Sums:
        """Returns the weight of every sum on this device's part of the batch."""
        weights = self.model.weights(batch)
        missing = [name for name in self.losses if name not in weights]
        if missing:
            raise UserError(f"weights returns none for {missing[0]!r}, which is in losses.")
        taken = [name for name in weights if name in OWN_NAMES]
        if taken:
            raise UserError(f"a sum is named {taken[0]!r}, as a metric of the step is: rename it.")
        return {name: jnp.sum(weight.astype(jnp.float32)) for name, weight in weights.items()}

    def cotangents(self, weights: Sums, loss_scale: jax.Array | None) -> Sums:
        """Returns what the backward pass of every loss starts from."""
        scale = jnp.float32(1) if loss_scale is None else loss_scale
        if len(self.losses) == 1:
            return {"loss": self.losses["loss"] * scale}
        with jax.named_scope("loss"):
            total = psum({name: weights[name] for name in self.losses}, BATCH_AXES, self.mesh)
        return {
            name: coefficient * scale * total["loss"] * _inverse(total[name])
            for name, coefficient in self.losses.items()
        }

    def reduce(self, sums: Sums, weights: Sums) -> WeightedSums:
        """Returns the global (sum, weight) of every name, from this device's shares."""
        if sums.keys() != weights.keys():
            raise UserError(
                f"head returns the sums {sorted(sums)}, but weights those of {sorted(weights)}: "
                "every sum needs a weight, and the other way round."
            )
        # Stages hold the same batch: one of them counts its weights, in the same reduction.
        if self.mesh.shape["stage"] > 1:
            is_first = jax.lax.axis_index("stage") == 0
            weights = {name: jnp.where(is_first, w, 0) for name, w in weights.items()}
        with jax.named_scope("loss"):
            total, weight = psum((sums, weights), MANUAL_AXES, self.mesh)
        return {name: (total[name], weight[name]) for name in total}

    def metrics(self, sums: WeightedSums) -> Sums:
        """Returns the value of every sum, `weight` (of the loss), and what is trained on."""
        values = {name: total * _inverse(weight) for name, (total, weight) in sums.items()}
        metrics = {**values, "weight": sums["loss"][1]}
        if self.losses != {"loss": 1.0}:
            terms = [factor * values[name] for name, factor in self.losses.items()]
            metrics["objective"] = sum(terms, jnp.float32(0))
        return metrics

    def gradient_factor(self, sums: WeightedSums) -> jax.Array:
        """Returns what is left to multiply gradients by."""
        return _inverse(sums["loss"][1])


def _inverse(weight: jax.Array) -> jax.Array:
    """1 / weight, or 0 where nothing has any weight."""
    return jnp.where(weight > 0, 1 / weight, 0)
