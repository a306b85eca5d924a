"""How long a run is, and what it reports on its way and at its end."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_jax.config.checks import check_int, check_number
from hybrid_jax.errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """The length of a run and what it reports.

    Attributes:
      steps: updates.
      seed: of the initial parameters, of dropout and of the sample.
      max_skipped: updates in a row whose loss or gradients were no numbers, or whose loss was a
        spike, that end the run; None: it goes on whatever comes.
      spike_sigmas: an update whose loss lies more than that many standard deviations above its
        running mean is skipped; None: none is.
      stall_seconds: a process that dispatches no step for so long ends with status 75; it must be
        more than a step, an evaluation and saving take together. None: it waits for ever.
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
      UserError: a number out of its range, an empty prompt, or a trace without a folder.
    """

    steps: int = 1000
    seed: int = 0
    max_skipped: int | None = 5
    spike_sigmas: float | None = None
    stall_seconds: float | None = None
    grace_seconds: float | None = None
    join_seconds: float = 300.0
    peer_seconds: float = 30.0
    log_every: int = 10
    eval_every: int | None = None
    eval_batches: int | None = None
    output_dir: str | None = None
    wandb_project: str | None = None
    profile_steps: tuple[int, int] | None = None
    sample_tokens: int = 0
    sample_prompt: str = "\n"
    sample_temperature: float = 0.8

    def __post_init__(self):
        check_int("train.steps", self.steps, at_least=1)
        check_int("train.seed", self.seed, at_least=0)
        check_int("train.log_every", self.log_every, at_least=1)
        check_int("train.sample_tokens", self.sample_tokens, at_least=0)
        check_number("train.sample_temperature", self.sample_temperature, "[0, inf)")
        for name in ("eval_every", "eval_batches", "max_skipped"):
            if getattr(self, name) is not None:
                check_int(f"train.{name}", getattr(self, name), at_least=1)
        for name in ("spike_sigmas", "stall_seconds", "grace_seconds"):
            if getattr(self, name) is not None:
                check_number(f"train.{name}", getattr(self, name), "(0, inf)")
        check_number("train.join_seconds", self.join_seconds, "(0, inf)")
        check_number("train.peer_seconds", self.peer_seconds, "[3, inf)")
        if self.profile_steps is not None:
            self._check_profile(self.profile_steps)
        if self.wandb_project == "":
            raise UserError(
                "train.wandb_project='' must not be empty: name a project, or set it to null."
            )

    def _check_profile(self, steps: tuple[int, int]) -> None:
        whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
        if len(steps) != 2 or not whole or not 1 <= steps[0] <= steps[1] <= self.steps:
            raise UserError(
                f"train.profile_steps={list(steps)} must be [first, last] with 1 <= first <= last "
                f"<= train.steps={self.steps}: such as [{min(3, self.steps)}, "
                f"{min(5, self.steps)}]."
            )
        if self.output_dir is None:
            raise UserError(
                f"train.profile_steps={list(steps)} needs a folder for the trace: set "
                "train.output_dir."
            )
