"""The loss of a model on held-out text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hybrid_jax.errors import UserError
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep


def evaluate(train: TrainStep, state: TrainState, batches: Iterable[Any]) -> float:
    """Returns the mean loss, in nats per token, over all tokens of `batches` by their weight.

    Args:
      batches: global host batches as for `TrainStep.step`, all of one shape.

    Raises:
      UserError: there is no batch, or no token of any weight in them.
    """
    loss_sum = weight_sum = 0.0
    for batch in batches:
        metrics = train.evaluate(state, batch)
        weight = float(metrics["weight"])
        if weight:
            loss_sum += float(metrics["loss"]) * weight
            weight_sum += weight
    if not weight_sum:
        raise UserError(
            "nothing to evaluate: the batches hold no token of any weight; give a longer text or "
            "other weights."
        )
    return loss_sum / weight_sum
