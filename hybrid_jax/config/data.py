"""What a run reads: the text, and how it is cut into batches."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_jax.config.checks import check_int, check_number


@dataclass(frozen=True)
class DataConfig:
    """A text and the batches made of it.

    Attributes:
      source: "kjv", the bundled text, or the path of any text file.
      global_batch: sequences in one update, over all devices and microbatches.
      seq_len: tokens in one sequence.
      seed: of the order of the sequences.
      validation_fraction: share of the text, at its end, that is held out.

    Raises:
      UserError: a number out of its range.
    """

    source: str = "kjv"
    global_batch: int = 32
    seq_len: int = 128
    seed: int = 0
    validation_fraction: float = 0.05

    def __post_init__(self):
        check_int("data.global_batch", self.global_batch, at_least=1)
        check_int("data.seq_len", self.seq_len, at_least=1)
        check_int("data.seed", self.seed, at_least=0)
        check_number("data.validation_fraction", self.validation_fraction, "(0, 1)")
