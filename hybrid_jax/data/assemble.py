"""From finished parts to a corpus in its place."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from hybrid_jax.data.bpe import CONFIG_NAME, FILE_NAME, TrainedTokenizer
from hybrid_jax.data.entries import kind
from hybrid_jax.data.files import InputFile
from hybrid_jax.data.header import HEADER, STARTS, TOKENS, Header, read_header
from hybrid_jax.data.parts import FOLDER, Parts
from hybrid_jax.data.tokenizer import Tokenizer
from hybrid_jax.data.tokens import open_tokens
from hybrid_jax.data.writer import TokenWriter
from hybrid_jax.errors import UserError


def assemble(
    parts: Parts,
    count: int,
    output: Path,
    tokenizer: Tokenizer,
    files: Sequence[InputFile],
    job: str,
) -> Header:
    """Joins the first `count` parts and moves the result into `output`, the header last.

    Raises:
      UserError: no part has a document.
    """
    folder = parts.folder / ".corpus"
    trained = isinstance(tokenizer, TrainedTokenizer)
    name = FILE_NAME if trained else tokenizer.name
    with TokenWriter(folder, vocab_size=tokenizer.vocab_size, tokenizer=name) as writer:
        for part in map(parts.part, range(count)):
            header = read_header(part)
            writer.num_skipped += header.num_skipped
            if header.num_documents:
                writer.extend(open_tokens(part))
        paths = tuple(file.path for file in files)
        if not writer.num_documents:
            raise UserError(f"no documents in {few(paths)}: give files with text.")
        header = writer.finish(sources=paths, job=job)
    for name in (FILE_NAME, CONFIG_NAME) if trained else ():
        if (parts.folder / name).exists():
            shutil.copyfile(parts.folder / name, folder / name)
        else:  # of another tokenizer, which this one would be mistaken for
            (output / name).unlink(missing_ok=True)
    (output / HEADER).unlink(missing_ok=True)
    for name in (FILE_NAME, CONFIG_NAME, TOKENS, STARTS, HEADER):
        if (folder / name).exists():
            (folder / name).replace(output / name)
    return header


def is_done(output: Path, job: str, overwrite: bool) -> bool:
    """Tells whether `output` is the corpus of this job.

    Raises:
      UserError: it is something else, not to be overwritten.
    """
    if kind(output / HEADER) != "nothing":
        try:
            open_tokens(output, verify="once")
            if read_header(output).job == job:
                return True
            found = f"{output} holds another corpus"
        except UserError:
            found = f"{output} holds a damaged corpus, or one of another version"
    elif kind(output / TOKENS) != "nothing" and kind(output / FOLDER) == "nothing":
        found = f"{output / TOKENS} is there, but not of an unfinished run"
    else:
        return False
    if not overwrite:
        raise UserError(f"{found}: choose another folder, or overwrite=True (--overwrite).")
    return False


def few(names: Sequence[str]) -> str:
    """Returns the first names, for messages; what cannot be printed in them is escaped.

    >>> few(["a", "b", "c", "d"])
    'a, b, c, …'
    """
    printable = [name.encode("utf-8", "backslashreplace").decode() for name in names[:3]]
    return ", ".join(printable) + (", …" if len(names) > 3 else "")
