"""Documents out of text and JSON-lines files, each with the place it was found at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from hybrid_jax.data.files import InputFile, Span
from hybrid_jax.errors import UserError, nearest

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ReadOptions:
    """How documents are found in files.

    Attributes:
      text_field: of a JSON object, or the column of a parquet file.
      separator: None: each .txt file is one document. Else a line that holds only this, and any
        white space, stands between two documents; "" is a blank line. Several of them are one.
      empty: "error" or "skip", for documents without anything but white space.

    Raises:
      UserError: a separator of two lines, an unknown `empty`.
    """

    text_field: str = "text"
    separator: str | None = None
    empty: str = "error"

    def __post_init__(self):
        if self.separator is not None:
            object.__setattr__(self, "separator", self.separator.strip())
            if "\n" in self.separator.strip():
                raise UserError(
                    f"separator={self.separator!r} is more than one line: give the one line that "
                    "stands between two documents, '' for a blank one."
                )
        if self.empty not in ("error", "skip"):
            raise UserError(f"empty={self.empty!r}: choose 'error' or 'skip'.")


class Document(NamedTuple):
    """A text and a function that says where it is, for messages; an empty text is to be skipped."""

    text: str
    where: Callable[[], str]


def read_documents(spans: Iterable[Span], options: ReadOptions) -> Iterator[Document]:
    """Yields the documents of `spans` in order.

    Raises:
      UserError: what cannot be read, with its line or row; with `empty="error"` an empty document.
    """
    for span in spans:
        for document in _readers(span, options):
            if document.text and not document.text.isspace():
                yield document
            elif options.empty == "skip":
                yield document._replace(text="")
            else:
                raise UserError(
                    f"{document.where()}: an empty document; remove it, or skip all such with "
                    "empty='skip' (--empty skip)."
                )


def _readers(span: Span, options: ReadOptions) -> Iterator[Document]:
    if span.file.kind == "parquet":
        from hybrid_jax.data.parquet import read_rows

        return read_rows(span, options.text_field)
    if span.file.num_bytes == 0:
        return iter([Document("", lambda: span.file.path)])
    if span.file.kind == "jsonl":
        return _read_jsonl(span, options.text_field)
    return _read_text(span, options.separator)


def _read_text(span: Span, separator: str | None) -> Iterator[Document]:
    if separator is None:
        with span.file.open() as file:
            yield _document(file.read().removeprefix(BYTE_ORDER_MARK), span, 1)
        return
    boundary = separator.encode()
    lines: list[bytes] = []
    number = 0
    for number, line in _lines(span):
        if line.strip(b" \t\r\n") != boundary:
            lines.append(line)
        elif lines:
            yield _join(lines, span, number)
            lines = []
    if lines:
        yield _join(lines, span, number + 1)


def _join(lines: list[bytes], span: Span, end: int) -> Document:
    """The document in the lines before line `end`, without its last line break."""
    text = b"".join(lines).removesuffix(b"\n").removesuffix(b"\r")
    return _document(text, span, end - len(lines))


def _document(data: bytes, span: Span, line: int) -> Document:
    return Document(_decode(data, span, line), partial(_where, span, line))


def _read_jsonl(span: Span, field: str) -> Iterator[Document]:
    for number, line in _lines(span):
        if line.isspace():
            continue
        text = _decode(line, span, number)
        try:
            value = json.loads(text)
        except ValueError as error:
            # The part of the message before the position, which counts from this line.
            raise UserError(
                f"{_where(span, number)}: invalid JSON ({str(error).partition(':')[0]})."
            ) from None
        except RecursionError:
            raise UserError(f"{_where(span, number)}: JSON nested too deeply.") from None
        yield Document(_field(value, field, span, number), partial(_where, span, number))


def _field(value: object, field: str, span: Span, number: int) -> str:
    if not isinstance(value, dict):
        raise UserError(f"{_where(span, number)}: not a JSON object with a field {field!r}.")
    if field not in value:
        raise UserError(
            f"{_where(span, number)}: no field {field!r}; there are {', '.join(value) or 'none'}. "
            f"Name the one with the text (--text-field).{nearest(field, value)}"
        )
    text = value[field]
    if not isinstance(text, str):
        raise UserError(
            f"{_where(span, number)}: field {field!r} is {json.dumps(text)[:40]}, not a string."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can escape what no text has, such as "\\ud800"
        raise UserError(
            f"{_where(span, number)}: field {field!r} has half of a surrogate pair; correct it."
        ) from None
    return text


def _lines(span: Span) -> Iterator[tuple[int, bytes]]:
    """Numbers, from 1, and lines of a span."""
    with span.file.open() as file:
        position = span.start
        if position:
            file.seek(position)
        for number, line in enumerate(file, 1):
            position += len(line)
            if number == 1 and span.start == 0:
                line = line.removeprefix(BYTE_ORDER_MARK)
            yield number, line
            if position >= span.stop and not span.file.compression:
                return


def _decode(data: bytes, span: Span, line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise UserError(
            f"{_where(span, line)}: not UTF-8 (byte 0x{data[error.start]:02x}): convert the file, "
            "for example with iconv."
        ) from None


def _where(span: Span, line: int) -> str:
    return f"{span.file.path}, line {_lines_before(span.file, span.start) + line}"


def _lines_before(file: InputFile, position: int) -> int:
    """Counted only when a message needs it."""
    count = 0
    if position:
        with file.open() as data:
            while position > 0 and (block := data.read(min(position, 1 << 20))):
                count += block.count(b"\n")
                position -= len(block)
    return count
