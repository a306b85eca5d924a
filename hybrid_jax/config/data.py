"""What a run reads: the text, and how it is cut into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hybrid_jax.config.checks import check_int, check_number, check_weights
from hybrid_jax.errors import UserError, nearest

DEFAULT_SOURCE = "kjv"


@dataclass(frozen=True)
class WeightedSource:
    """One source of a mixture.

    Attributes:
      path: what it is, as `DataConfig.source`.
      weight: its share of the sequences, more than 0.
    """

    path: str
    weight: float


@dataclass(frozen=True)
class DataConfig:
    """One text, or a mixture of several, and the batches made of it.

    >>> data = DataConfig(sources=(WeightedSource("kjv", 0.7), WeightedSource("news.txt", 0.3)))
    >>> data.describe()
    '0.7 kjv + 0.3 news.txt'

    Attributes:
      source: "kjv", the bundled text, or the path of any text file, or of a folder that
        `hybrid-jax data prepare` wrote; None: "kjv", unless there are `sources`.
      sources: a mixture, in place of `source`; the weights sum to 1.
      global_batch: sequences in one update, over all devices and microbatches.
      seq_len: tokens in one sequence.
      seed: of the order of the sequences.
      validation_fraction: share of each source, at its end, that is held out.

    Raises:
      UserError: a number out of its range, or both `source` and `sources`.
    """

    source: str | None = None
    sources: tuple[WeightedSource, ...] | None = None
    global_batch: int = 32
    seq_len: int = 128
    seed: int = 0
    validation_fraction: float = 0.05

    def __post_init__(self):
        check_int("data.global_batch", self.global_batch, at_least=1)
        check_int("data.seq_len", self.seq_len, at_least=1)
        check_int("data.seed", self.seed, at_least=0)
        check_number("data.validation_fraction", self.validation_fraction, "(0, 1)")
        if self.sources is None:
            return
        if self.source is not None:
            raise UserError(
                f"data.source={self.source!r} and data.sources must not both be given: set one of "
                "them to null."
            )
        if not self.sources:
            raise UserError("data.sources=[] must have an entry: add one, or set it to null.")
        check_weights("data.sources: weights", [source.weight for source in self.sources])

    @property
    def mixture(self) -> tuple[WeightedSource, ...]:
        """All that is read: `sources`, or `source` alone."""
        return self.sources or (WeightedSource(self.source or DEFAULT_SOURCE, 1.0),)

    def describe(self) -> str:
        """Returns what is read in a few words."""
        if len(self.mixture) == 1:
            return self.mixture[0].path
        return " + ".join(f"{source.weight:g} {source.path}" for source in self.mixture)


def parse_sources(value: Any) -> tuple[WeightedSource, ...]:
    """Returns the entries of `data.sources` as YAML has them: mappings with a path and a weight.

    Raises:
      UserError: anything else.
    """
    example = "[{path: kjv, weight: 0.7}, {path: news.txt, weight: 0.3}]"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"data.sources={value!r} must be a list, such as {example}.")
    return tuple(_parse_source(f"data.sources[{i}]", entry) for i, entry in enumerate(value))


def _parse_source(name: str, entry: Any) -> WeightedSource:
    if isinstance(entry, WeightedSource):
        return entry
    wanted = [field.name for field in fields(WeightedSource)]
    if not isinstance(entry, Mapping):
        raise UserError(f"{name}={entry!r} must be a mapping, such as {{path: kjv, weight: 0.7}}.")
    for key in entry:
        if key not in wanted:
            raise UserError(
                f"unknown field {key!r} in {name}: an entry has {' and '.join(wanted)}."
                f"{nearest(str(key), wanted)}"
            )
    for key in wanted:
        if key not in entry:
            raise UserError(f"{name} lacks {key!r}: write {{path: kjv, weight: 0.7}}.")
    path, weight = entry["path"], entry["weight"]
    if not isinstance(path, str) or not path:
        raise UserError(f"{name}.path={path!r} must be text: the path of a source.")
    if not isinstance(weight, int | float) or isinstance(weight, bool):
        raise UserError(f"{name}.weight={weight!r} must be a number.")
    return WeightedSource(path, float(weight))
