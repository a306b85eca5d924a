"""What a checkpoint says of itself: the JSON beside its arrays."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hybrid_jax.errors import UserError

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
      config: whatever else the run wants to know when it resumes.
      written_by: versions of this package and of those it saves with.
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

    def difference(self, other: Manifest) -> str | None:
        """Returns the first array that `other` has otherwise, and how many more; None if equal.

        >>> entry = ArrayEntry((2,), "float32", "0123")
        >>> Manifest(1, {"a": entry}).difference(Manifest(1, {"a": entry, "b": entry}))
        "'b' is there once only"
        """
        names = sorted({*self.arrays, *other.arrays})
        pairs = [(name, self.arrays.get(name), other.arrays.get(name)) for name in names]
        found = [pair for pair in pairs if _content(pair[1]) != _content(pair[2])]
        if not found:
            return None
        name, mine, theirs = found[0]
        more = f" (one of {len(found)})" if len(found) > 1 else ""
        if mine is None or theirs is None:
            return f"{name!r} is there once only{more}"
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            kinds = " and ".join(f"{entry.dtype}{list(entry.shape)}" for entry in (mine, theirs))
            return f"{name!r} is {kinds}{more}"
        return f"{name!r} differs{more}"

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Manifest:
        """The inverse of `to_json`.

        Raises:
          Damaged: the checksum is wrong.
          UserError: a release with another format wrote it, which is named.
        """
        fields = dict(content)
        if fields.pop("checksum", None) != checksum(fields):
            raise Damaged("the manifest's checksum is wrong")
        version = fields.pop("version")
        if version != VERSION:
            release = fields.get("written_by", {}).get("hybrid_jax")
            raise UserError(
                f"format version {version}, but this release reads version {VERSION}: restore it "
                f"with {f'hybrid_jax {release}' if release else 'the release'}, which wrote it."
            )
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


def read_manifest(folder: Path, step: int) -> Manifest:
    """Returns the manifest of the step saved in `folder`.

    Raises:
      Damaged: it is missing, not what was written, or of another step.
      UserError: a release with another format wrote it.
    """
    try:
        content = json.loads((folder / "manifest" / "metadata").read_text())
        manifest = Manifest.from_json(content)
    except UserError as error:
        raise UserError(f"checkpoint step {step} in {folder.parent} has {error}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"its manifest cannot be read ({type(error).__name__}: {error})") from None
    if manifest.step != step:
        raise Damaged(
            f"its manifest is of step {manifest.step}, but its folder has the name of step {step}: "
            "one of them was renamed or copied"
        )
    return manifest


def _content(entry: ArrayEntry | None) -> tuple[Any, ...] | None:
    """What the array holds, whatever its dims are called."""
    return None if entry is None else (entry.shape, entry.dtype, entry.digest)


def checksum(content: Mapping[str, Any]) -> str:
    """Returns a hash of JSON values."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
