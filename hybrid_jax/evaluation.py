"""The value of a model's sums on held-out data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep


def evaluate(
    train: TrainStep, state: TrainState, batches: Iterable[Any]
) -> dict[str, float | np.ndarray]:
    """Returns the value of every sum of the model over all batches, "loss" among them.

    A value is the total of its sum divided by that of its weights: the loss of a language model is
    the mean in nats per token, whatever the number of tokens in each batch.

    Args:
      batches: global host batches as for `TrainStep.step`, all of one shape.

    Raises:
      UserError: there is no batch, or nothing of any weight in them.
    """
    totals: defaultdict[str, Any] = defaultdict(float)
    weights: defaultdict[str, float] = defaultdict(float)
    for batch in batches:
        for name, (total, weight) in jax.device_get(train.sums(state, batch)).items():
            if weight:  # without any, the sum may be anything
                totals[name] = totals[name] + np.float64(total)
                weights[name] += float(weight)
    if not weights["loss"]:
        raise UserError(
            "nothing to evaluate: the batches hold no token of any weight; give a longer text or "
            "other weights."
        )
    values = {name: total / weights[name] for name, total in totals.items()}
    return {name: value if np.ndim(value) else float(value) for name, value in values.items()}
