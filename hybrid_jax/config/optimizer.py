"""What the optimizer of a run is: the rule, its learning rate schedule, decay and clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hybrid_jax.config.checks import check_choice, check_int, check_number

_CHOICES = {
    "name": ("adamw", "adafactor", "lion", "muon"),
    "schedule": ("constant", "cosine", "linear", "wsd"),
}
_INTERVALS = {
    "learning_rate": "(0, inf)",
    "end_fraction": "[0, 1]",
    "decay_fraction": "(0, 1]",
    "b1": "[0, 1)",
    "b2": "[0, 1)",
    "eps": "(0, inf)",
    "weight_decay": "[0, inf)",
}


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
    learning_rate: float = 3e-4
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    warmup_steps: int = 0
    end_fraction: float = 0.1
    decay_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            check_choice(f"optimizer.{name}", getattr(self, name), choices)
        for name, interval in _INTERVALS.items():
            check_number(f"optimizer.{name}", getattr(self, name), interval)
        check_int("optimizer.warmup_steps", self.warmup_steps, at_least=0)
        if self.clip_norm is not None:
            check_number("optimizer.clip_norm", self.clip_norm, "(0, inf)")
