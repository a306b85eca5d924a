"""What a run reads: the text, and how it is cut into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

from hybrid_jax.config.checks import INT32_MAX, check_weights, did_you_mean, is_number, shown
from hybrid_jax.config.fields import Count, Interval, LocalPath, Whole, check_fields
from hybrid_jax.config.paths import local_text
from hybrid_jax.errors import UserError

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

    source: LocalPath | None = None
    sources: Annotated[tuple[WeightedSource, ...], parse_sources] | None = None
    global_batch: Count = 32
    seq_len: Count = 128
    seed: Annotated[int, Whole(at_most=2**63 - 1)] = 0
    validation_fraction: Annotated[float, Interval("(0, 1)")] = 0.05

    def __post_init__(self):
        check_fields("data", self)
        if self.global_batch * self.seq_len > INT32_MAX:
            raise UserError(
                f"data.global_batch={self.global_batch} x data.seq_len={self.seq_len} must be at "
                f"most {INT32_MAX} tokens: make one of them smaller."
            )
        if self.sources is None:
            return
        if self.source is not None:
            raise UserError(
                f"data.source={shown(self.source)} and data.sources must not both be given: set "
                "one of them to null."
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


def parse_sources(name: str, value: Any) -> tuple[WeightedSource, ...]:
    """Returns the entries of a mixture: mappings with a path and a weight, as YAML has them.

    Raises:
      UserError: anything else.
    """
    example = "[{path: kjv, weight: 0.7}, {path: news.txt, weight: 0.3}]"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"{name}={shown(value)} must be a list, such as {example}.")
    return tuple(_parse_source(f"{name}[{i}]", entry) for i, entry in enumerate(value))


def _parse_source(name: str, entry: Any) -> WeightedSource:
    if isinstance(entry, WeightedSource):
        entry = vars(entry)
    wanted = [field.name for field in fields(WeightedSource)]
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{name}={shown(entry)} must be a mapping, such as {{path: kjv, weight: 0.7}}."
        )
    for key in entry:
        if key not in wanted:
            raise UserError(
                f"unknown field {shown(key)} in {name}: an entry has {' and '.join(wanted)}."
                f"{did_you_mean(key, wanted)}"
            )
    for key in wanted:
        if key not in entry:
            raise UserError(f"{name} lacks {key!r}: write {{path: kjv, weight: 0.7}}.")
    path, weight = entry["path"], entry["weight"]
    if not isinstance(path, str) or not path:
        raise UserError(f"{name}.path={shown(path)} must be text: the path of a source.")
    if not is_number(weight):
        raise UserError(f"{name}.weight={shown(weight)} must be a number.")
    try:
        return WeightedSource(local_text(f"{name}.path", path), float(weight))
    except OverflowError:
        raise UserError(f"{name}.weight={shown(weight)} must be at most 1.") from None
