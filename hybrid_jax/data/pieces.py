"""Cuts input files into pieces of bounded size, between documents."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from hybrid_jax.data.files import InputFile, Span
from hybrid_jax.data.readers import ReadOptions
from hybrid_jax.errors import UserError

Piece = tuple[Span, ...]


def plan(files: Sequence[InputFile], options: ReadOptions, piece_bytes: int) -> list[Piece]:
    """Returns the pieces of `files`, in order; what they are does not depend on who reads them.

    A piece holds many small files, or a part of a large one. Compressed files, and texts that are
    one document, cannot be cut.

    Raises:
      UserError: a damaged parquet file or one without the column; a separator for no .txt file.
    """
    if options.separator is not None and all(file.kind != "txt" for file in files):
        raise UserError(
            f"separator={options.separator!r} is for .txt files, and there are none: leave it out."
        )
    spans = (span for file in files for span in _spans(file, options, piece_bytes))
    return list(_group(spans, piece_bytes))


def _group(spans: Iterable[Span], piece_bytes: int) -> Iterator[Piece]:
    group: list[Span] = []
    size = 0
    for span in spans:
        if group and size + span.num_bytes > piece_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(span)
        size += span.num_bytes
    if group:
        yield tuple(group)


def _spans(file: InputFile, options: ReadOptions, piece_bytes: int) -> list[Span]:
    if file.kind == "parquet":
        from hybrid_jax.data.parquet import row_groups

        return row_groups(file, options.text_field)
    if file.kind == "jsonl":
        boundary = rb"\n"
    elif options.separator is not None:
        boundary = rb"^[ \t\r]*" + re.escape(options.separator.encode()) + rb"[ \t\r]*\n"
    else:
        boundary = None
    whole = Span(file, 0, file.num_bytes, file.num_bytes)
    if boundary is None or file.compression or file.num_bytes <= piece_bytes:
        return [whole]
    cuts = [0, *_cuts(file, re.compile(boundary, re.MULTILINE), piece_bytes), file.num_bytes]
    return [Span(file, start, stop, stop - start) for start, stop in pairwise(cuts) if start < stop]


def _cuts(file: InputFile, boundary: re.Pattern[bytes], piece_bytes: int) -> list[int]:
    """The ends of the first boundaries beyond each multiple of `piece_bytes`."""
    cuts = []
    with (
        file.open() as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        position = piece_bytes
        while position < len(data) and (match := boundary.search(data, position)):
            cuts.append(match.end())
            position = match.end() + piece_bytes
    return cuts
