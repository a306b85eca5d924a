"""What a checkpoint says of itself: the JSON beside its arrays."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1


class Damaged(Exception):
    """A checkpoint that is not what was saved; the text says in which way."""


@dataclass(frozen=True)
class ArrayEntry:
    """One array of a checkpoint.

    Attributes:
      shape: of the whole array, layers in depth order.
      dtype: its name.
      digest: 16 hexadecimal digits, see `hybrid_jax.checkpoint.digest`.
      axes: logical name of every dim, of parameters only.
    """

    shape: tuple[int, ...]
    dtype: str
    digest: str
    axes: tuple[str | None, ...] | None = None


@dataclass(frozen=True)
class Manifest:
    """The description of a checkpoint, independent of the layout it was saved from.

    Attributes:
      step: updates before it was saved.
      arrays: by name, such as "params/blocks/attention/query".
      metrics: what was measured at that step.
      strategy: the layout that it was saved from, for information only.
      config: whatever else the run wants to know when it goes on.
      written_by: versions of the packages.
    """

    step: int
    arrays: dict[str, ArrayEntry]
    metrics: dict[str, float] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    written_by: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values with a checksum of themselves."""
        finite = {name: x for name, x in self.metrics.items() if math.isfinite(x)}
        content = {"version": VERSION, **asdict(self), "metrics": finite}
        content = json.loads(json.dumps(content))  # tuples are lists from here on
        return {**content, "checksum": checksum(content)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Manifest:
        """The inverse of `to_json`.

        Raises:
          Damaged: the checksum is wrong, or another version wrote it.
        """
        fields = dict(content)
        if fields.pop("checksum", None) != checksum(fields):
            raise Damaged("the manifest's checksum is wrong")
        version = fields.pop("version")
        if version != VERSION:
            raise Damaged(f"its format is version {version}, this program reads {VERSION}")
        arrays = {
            name: ArrayEntry(
                tuple(entry["shape"]),
                entry["dtype"],
                entry["digest"],
                None if entry["axes"] is None else tuple(entry["axes"]),
            )
            for name, entry in fields.pop("arrays").items()
        }
        return cls(arrays=arrays, **fields)


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of the step saved in `folder`.

    Raises:
      Damaged: it is missing, or not what was written.
    """
    try:
        content = json.loads((folder / "manifest" / "metadata").read_text())
        return Manifest.from_json(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"its manifest cannot be read ({type(error).__name__}: {error})") from None


def checksum(content: Mapping[str, Any]) -> str:
    """Returns a hash of JSON values."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
