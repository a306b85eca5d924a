"""Whether the files of a checkpoint hold what was saved, now and later."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorstore as ts

from hybrid_jax.checkpoint.digest import digest_piece
from hybrid_jax.checkpoint.manifest import Damaged, Manifest, checksum

_STAMP = "verified"


def hexadecimal(digest: np.ndarray) -> str:
    """Two uint32 as 16 digits."""
    return "".join(f"{int(word):08x}" for word in digest)


def read_back(folder: Path, manifest: Manifest, part: int = 0, parts: int = 1) -> None:
    """Compares every array on disk with its digest, a chunk at a time.

    Args:
      folder: of the step.
      part: which of `parts` equal shares of the arrays to look at.

    Raises:
      Damaged: an array is not what was saved.
    """
    for name in sorted(manifest.arrays)[part::parts]:
        entry = manifest.arrays[name]
        store = _open(folder, name)
        total = np.zeros(2, np.uint32)
        for index in _chunks(store):
            origin = tuple(int(span.start) for span in index)
            total += digest_piece(store[index].read().result(), origin, entry.shape)
        if hexadecimal(total) != entry.digest:
            raise Damaged(f"array {name} on disk is not what was saved")


def stamp(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Notes that a share of a step has been verified, with a checksum of its files."""
    sums = {name: _file_sum(folder / name) for name in _files(folder)[part::parts]}
    content = json.dumps({"sums": sums, "checksum": checksum(sums)})
    path = folder / f"{_STAMP}.{part}-of-{parts}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(content)
    temporary.replace(path)


def is_verified(folder: Path) -> bool:
    """Whether every process has verified its share, of one run or of another."""
    found = Counter(path.stem.rpartition("-")[2] for path in _stamps(folder))
    return any(count == int(parts) for parts, count in found.items())


def check_files(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Compares a share of the files with their checksums, where there are any.

    Raises:
      Damaged: a file is missing or has changed since it was verified.
    """
    sums: dict[str, str] = {}
    for path in _stamps(folder):
        try:
            content = json.loads(path.read_text())
            sound = content["checksum"] == checksum(content["sums"])
        except (OSError, ValueError, TypeError, KeyError):
            sound = False
        if not sound:
            raise Damaged(f"file {path.name} has changed")
        sums |= content["sums"]
    for name in sorted(sums)[part::parts]:
        try:
            found = _file_sum(folder / name)
        except OSError as error:
            raise Damaged(f"file {name} cannot be read ({error.strerror})") from None
        if found != sums[name]:
            raise Damaged(f"file {name} has changed")


def _open(folder: Path, name: str) -> ts.TensorStore:
    base = {"driver": "file", "path": f"{(folder / 'state').absolute()}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name.replace('/', '.')}/"}
    return ts.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()


def _chunks(store: ts.TensorStore) -> Iterator[tuple[slice, ...]]:
    spans = []
    for length, size in zip(store.shape, store.chunk_layout.read_chunk.shape or (), strict=True):
        starts = range(0, length, size or length)
        spans.append([slice(start, min(start + starts.step, length)) for start in starts])
    return itertools.product(*spans)


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if not name.startswith(f"{_STAMP}."))


def _stamps(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_STAMP}.*.json"))


def _file_sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
