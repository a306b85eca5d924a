"""Documents out of the rows of a parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from hybrid_jax.data.files import InputFile, Span
from hybrid_jax.data.readers import Document
from hybrid_jax.errors import UserError, nearest

ROWS_AT_ONCE = 256


def row_groups(file: InputFile, column: str) -> list[Span]:
    """Returns a span for each row group, after a look at the schema.

    Raises:
      UserError: a damaged file, no such column, one that is not of strings, or the package
        `pyarrow` is missing.
    """
    with _open(file) as opened:
        schema, metadata = opened.schema_arrow, opened.metadata
        if column not in schema.names:
            raise UserError(
                f"{file.path}: no column {column!r}; there are {', '.join(schema.names)}. Name the "
                f"one with the text (--text-field).{nearest(column, schema.names)}"
            )
        kind = str(schema.field(column).type)
        if kind not in ("string", "large_string", "string_view") and not kind.startswith(
            "dictionary<values=string,"
        ):
            raise UserError(f"{file.path}: column {column!r} is of {kind}, not of strings.")
        total = max(1, sum(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)))
        # Sizes of single columns are not always right; the file's is, and rows are known.
        return [
            Span(file, i, i + 1, file.num_bytes * metadata.row_group(i).num_rows // total)
            for i in range(metadata.num_row_groups)
        ]


def read_rows(span: Span, column: str) -> Iterator[Document]:
    """Yields the documents in the row groups of a span; a missing value is an empty document."""
    with _open(span.file) as opened:
        row = sum(opened.metadata.row_group(i).num_rows for i in range(span.start))
        batches = opened.iter_batches(
            ROWS_AT_ONCE,
            row_groups=range(span.start, span.stop),
            columns=[column],
            use_threads=False,
        )
        for batch in batches:
            for value in batch.column(0):
                where = partial(_where, span, row)
                try:
                    text = value.as_py()
                except UnicodeDecodeError:
                    raise UserError(f"{where()}: column {column!r} is not UTF-8.") from None
                yield Document(text or "", where)
                row += 1


def _where(span: Span, row: int) -> str:
    return f"{span.file.path}, row {row} (from 0)"


@contextmanager
def _open(file: InputFile) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{file.path}: parquet files need the package pyarrow: pip install "
            "'hybrid-jax[parquet]'."
        ) from None
    with file.open() as data:
        try:
            with parquet.ParquetFile(data, page_checksum_verification=True) as opened:
                yield opened
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{file.path} cannot be read as parquet ({reason}).") from None
