"""How long a run is, and what it reports on its way and at its end."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_jax.config.checks import check_int, check_number


@dataclass(frozen=True)
class TrainConfig:
    """The length of a run and what it reports.

    Attributes:
      steps: updates.
      seed: of the initial parameters, of dropout and of the sample.
      log_every: updates between two records of the metrics.
      eval_every: updates between two held-out losses; None: only at the end.
      eval_batches: batches of held-out text that are read each time; None: all of it.
      output_dir: folder of `metrics.jsonl` and of the TensorBoard events; None: nothing is
        written.
      sample_tokens: tokens of text written by the model at the end; 0 for none.
      sample_prompt: what that text begins with.
      sample_temperature: divides the logits; 0 takes the most likely token each time.

    Raises:
      UserError: a number out of its range, or an empty prompt.
    """

    steps: int = 1000
    seed: int = 0
    log_every: int = 10
    eval_every: int | None = None
    eval_batches: int | None = None
    output_dir: str | None = None
    sample_tokens: int = 0
    sample_prompt: str = "\n"
    sample_temperature: float = 0.8

    def __post_init__(self):
        check_int("train.steps", self.steps, at_least=1)
        check_int("train.seed", self.seed, at_least=0)
        check_int("train.log_every", self.log_every, at_least=1)
        check_int("train.sample_tokens", self.sample_tokens, at_least=0)
        check_number("train.sample_temperature", self.sample_temperature, "[0, inf)")
        for name in ("eval_every", "eval_batches"):
            if getattr(self, name) is not None:
                check_int(f"train.{name}", getattr(self, name), at_least=1)
