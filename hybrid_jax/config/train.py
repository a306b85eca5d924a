"""How long a run is, and what it reports on its way and at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from hybrid_jax.config.checks import shown
from hybrid_jax.config.fields import (
    Count,
    Interval,
    LocalFolder,
    Name,
    Natural,
    Positive,
    Seconds,
    Whole,
    check_fields,
    pair_of_whole,
)
from hybrid_jax.errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """The length of a run and what it reports.

    Attributes:
      steps: updates.
      seed: of the initial parameters, of dropout and of the sample; `jax.random.key` takes 32 bits.
      max_skipped: updates in a row whose loss or gradients were no numbers, or whose loss was a
        spike, that end the run; None: it continues whatever comes.
      spike_sigmas: an update whose loss lies more than that many standard deviations above its
        running mean is skipped; None: none is.
      stall_seconds: a process that dispatches no step for so long ends with status 75; it must be
        more than a step, an evaluation and saving take together. "auto": ten times the slowest of
        the first ten steps, at least 10 minutes; an hour before them, between two batches of an
        evaluation and for saving. None: it waits for ever.
      grace_seconds: time after SIGTERM or Ctrl-C in which the run must have saved and ended, or
        the process ends with status 75; None: any time.
      join_seconds: how long the processes of a run wait for each other at its start; then they end
        with status 75 and name the one that is missing.
      peer_seconds: how long a process may give no sign of life before the others end with status
        75; one that dies is noticed at once.
      log_every: updates between two records of the metrics.
      eval_every: updates between two held-out losses; None: only at the end.
      eval_batches: batches of held-out text that are read each time; None: all of it.
      output_dir: folder of `metrics.jsonl` and of the TensorBoard events; None: nothing is
        written.
      wandb_project: where the metrics go at Weights & Biases (`pip install wandb`); None: nowhere.
      profile_steps: (first, last) step of a `jax.profiler` trace in `output_dir`; None: no trace.
      sample_tokens: tokens of text written by the model at the end; 0 for none.
      sample_prompt: what that text begins with.
      sample_temperature: divides the logits; 0 takes the most likely token each time.

    Raises:
      UserError: a value that its field cannot hold, or a trace without a folder.
    """

    steps: Count = 1000
    seed: Annotated[int, Whole(at_most=2**32 - 1)] = 0
    max_skipped: Count | None = 5
    spike_sigmas: Positive | None = None
    stall_seconds: Seconds | Literal["auto"] | None = "auto"
    grace_seconds: Seconds | None = None
    join_seconds: Seconds = 300.0
    peer_seconds: Annotated[float, Interval("[3, 1e9]")] = 30.0
    log_every: Count = 10
    eval_every: Count | None = None
    eval_batches: Count | None = None
    output_dir: LocalFolder | None = None
    wandb_project: Name | None = None
    profile_steps: Annotated[tuple[int, int], pair_of_whole] | None = None
    sample_tokens: Natural = 0
    sample_prompt: str = "\n"
    sample_temperature: Annotated[float, Interval("[0, inf)")] = 0.8

    def __post_init__(self):
        check_fields("train", self)
        if 0 < self.sample_temperature < 1e-6:
            raise UserError(
                f"train.sample_temperature={self.sample_temperature} must be 0 or at least 1e-6: "
                "nearer to 0 the logits overflow; 0 takes the most likely token."
            )
        if self.profile_steps is not None:
            self._check_profile(self.profile_steps)

    def _check_profile(self, steps: tuple[int, int]) -> None:
        if not 1 <= steps[0] <= steps[1] <= self.steps:
            raise UserError(
                f"train.profile_steps={shown(list(steps))} must be [first, last] with 1 <= first "
                f"<= last <= train.steps={self.steps}: such as [{min(3, self.steps)}, "
                f"{min(5, self.steps)}]."
            )
        if self.output_dir is None:
            raise UserError(
                f"train.profile_steps={list(steps)} needs a folder for the trace: set "
                "train.output_dir."
            )
