"""What the optimizer of a run is: the rule, its learning rate schedule, decay and clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from hybrid_jax.config.fields import Interval, Natural, Positive, check_fields

Fraction = Annotated[float, Interval("[0, 1]")]
Decay = Annotated[float, Interval("[0, 1)")]


@dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimizer with warm-up, decay, masked weight decay and clipping.

    Attributes:
      name: "adamw" (Loshchilov & Hutter 2019), "adafactor" (Shazeer & Stern 2018), "lion" (Chen et
        al. 2023) or "muon" (Jordan et al. 2024; AdamW for what is not a matrix).
      learning_rate: the peak, reached at the end of the warm-up.
      schedule: after the warm-up: "constant"; "cosine" or "linear" down to the end; or "wsd"
        (warm-up, stable, decay): constant, then linear over the last `decay_fraction`.
      warmup_steps: updates of linear rise from 0.
      end_fraction: learning rate that the schedule falls to after the last update, as a fraction of
        the peak.
      decay_fraction: share of all updates in which "wsd" decays.
      b1: decay of the first moment, per update.
      b2: decay of the second moment, per update (for "lion": of its momentum).
      eps: added to the root of the second moment.
      weight_decay: strength, times the learning rate, on matrices only: not on norms or biases.
      clip_norm: global norm to which larger gradients are scaled down; None: no clipping.

    Raises:
      UserError: an unknown choice or a number out of its range.
    """

    name: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    learning_rate: Positive = 3e-4
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    warmup_steps: Natural = 0
    end_fraction: Fraction = 0.1
    decay_fraction: Annotated[float, Interval("(0, 1]")] = 0.1
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Interval("[0, inf)")] = 0.1
    clip_norm: Positive | None = 1.0

    def __post_init__(self):
        check_fields("optimizer", self)


def learning_rate(config: OptimizerConfig, update: int, total_steps: int) -> float:
    """Returns the learning rate of one update, for the log: no device is asked for it.

    The compiled step has the same from `make_learning_rate`, which says what the schedules are.

    >>> learning_rate(OptimizerConfig(learning_rate=1.0, schedule="linear"), 5, total_steps=10)
    0.55

    Args:
      update: from 0.
      total_steps: length of the run.
    """
    peak, end = config.learning_rate, config.learning_rate * config.end_fraction
    if update < config.warmup_steps:
        return peak * update / config.warmup_steps
    after, rest = update - config.warmup_steps, max(total_steps - config.warmup_steps, 1)
    if config.schedule == "constant":
        return peak
    if config.schedule == "wsd":
        decay = max(round(total_steps * config.decay_fraction), 1)
        after, rest = max(after - max(rest - decay, 0), 0), decay
    done = min(after / rest, 1.0)
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return end + (peak - end) * left
