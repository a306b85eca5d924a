"""From text files to token files, in parallel; a killed run resumes where it was."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hybrid_jax.data.assemble import assemble, is_done
from hybrid_jax.data.bpe import CONFIG_NAME, FILE_NAME, TrainedTokenizer
from hybrid_jax.data.entries import expand
from hybrid_jax.data.job import read_job
from hybrid_jax.data.parts import Parts, open_parts, remove_parts
from hybrid_jax.data.pieces import Piece, plan
from hybrid_jax.data.progress import Progress, Silent
from hybrid_jax.data.readers import ReadOptions, read_documents
from hybrid_jax.data.source import TokenSource
from hybrid_jax.data.tokenizer import Tokenizer, load_tokenizer
from hybrid_jax.data.tokens import open_tokens
from hybrid_jax.data.workers import map_in_order
from hybrid_jax.data.writer import TokenWriter
from hybrid_jax.errors import RunError, UserError

PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class Task:
    """What a worker makes a part of: a piece of the input, and all it needs to know."""

    piece: Piece
    part: Path
    tokenizer: str
    options: ReadOptions


def prepare(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    tokenizer: str | Path = "bytes",
    text_field: str = "text",
    separator: str | None = None,
    empty: str = "error",
    workers: int | None = None,
    piece_bytes: int = PIECE_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TokenSource:
    """Tokenizes text files into a folder of token files.

    What is written depends on the inputs, their order, the tokenizer and the reading options only,
    not on the workers. A run that was killed resumes, when it is started again, with the pieces
    that it had not finished; the corpus is in place at once, when all is done. Inputs are the same
    as before if their contents are, for which they are read once, at about 1 GiB/s per thread.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.txt").write_text("one\\n\\ntwo")
    >>> source = prepare([folder / "a.txt"], folder / "tokens", separator="", workers=1)
    >>> source.tokens.tolist(), source.starts.tolist()
    ([111, 110, 101, 257, 116, 119, 111, 257], [0, 4])

    Args:
      inputs: files, folders and patterns: .txt, .jsonl (both also .gz and .xz) and .parquet.
      output: the folder to write to; made if it is missing.
      tokenizer: "bytes", or the path of a `tokenizer.json` or its folder.
      text_field: with the text, of JSON objects and parquet rows.
      separator: None: a .txt file is one document. Else the line between two documents, "" for a
        blank line.
      empty: "error" or "skip", for documents without text.
      workers: processes; None: one for each CPU that this one may use.
      piece_bytes: of input, about, that are tokenized at once; a killed run loses at most this
        much of each worker's work. A single document and a compressed file are never cut.
      overwrite: replace another corpus in `output`.
      progress: where to report how far it is.

    Raises:
      UserError: inputs or documents that cannot be read, each with its place; an input that
        changes meanwhile; another corpus in `output`; an unusable tokenizer.
      RunError: a worker died or the disk is full; what was finished is kept.
    """
    options = ReadOptions(text_field, separator, empty)
    workers = _num_workers(workers)
    if piece_bytes < 1:
        raise UserError(f"piece_bytes={piece_bytes}: must be at least 1.")
    progress = progress or Silent()
    loaded = load_tokenizer(tokenizer)
    tokenizer_files = loaded.files if isinstance(loaded, TrainedTokenizer) else ()
    job = read_job(inputs, {**asdict(options), "piece": piece_bytes}, workers, progress)
    fingerprint = job.fingerprint(tokenizer_files)
    output = expand(output)
    if is_done(output, fingerprint, overwrite):
        progress.say(f"{output} is this corpus already")
        remove_parts(output)
        return open_tokens(output)
    pieces = plan(job.files, options, piece_bytes)
    try:
        with open_parts(output, fingerprint) as parts:
            copies = _copy(tokenizer_files, parts.folder)
            if job.fingerprint(copies) != fingerprint:
                raise UserError(f"{loaded.name} has changed since it was loaded: run again.")
            _tokenize(pieces, parts, options, bool(tokenizer_files), workers, progress)
            # Each piece was made of these contents; what was changed after it was read is not.
            job.check_unchanged()
            header = assemble(parts, len(pieces), output, loaded, job.files, fingerprint)
            remove_parts(output)
    except OSError as error:
        raise RunError(
            f"writing to {output} failed: {error.strerror or error}. Finished pieces are kept; run "
            "again to resume."
        ) from None
    if header.num_skipped:
        progress.say(f"{header.num_skipped} empty documents were skipped")
    return open_tokens(output)


def _copy(tokenizer_files: Sequence[Path], folder: Path) -> list[Path]:
    names = (FILE_NAME, CONFIG_NAME)
    pairs = zip(tokenizer_files, names, strict=False)
    return [Path(shutil.copyfile(file, folder / name)) for file, name in pairs]


def _tokenize(
    pieces: Sequence[Piece],
    parts: Parts,
    options: ReadOptions,
    trained: bool,
    workers: int,
    progress: Progress,
) -> None:
    """Makes the parts that are not there yet."""
    if parts.anew:
        progress.say("inputs or options have changed since the unfinished run: starting anew")
    sizes = [sum(span.num_bytes for span in piece) for piece in pieces]
    missing = [index for index in range(len(pieces)) if not parts.is_finished(index)]
    if len(missing) < len(pieces):
        progress.say(f"resuming: {len(pieces) - len(missing)} of {len(pieces)} pieces are finished")
    progress.start(sum(sizes), sum(sizes) - sum(sizes[index] for index in missing))
    name = str(parts.folder / FILE_NAME) if trained else "bytes"
    tasks = [Task(pieces[index], parts.part(index), name, options) for index in missing]
    with closing(map_in_order(work, tasks, workers)) as results:
        for index, _ in zip(missing, results, strict=True):
            progress.advance(sizes[index])


def work(task: Task) -> None:
    """Tokenizes one piece into its part, which appears when it is whole."""
    tokenizer = _load_once(task.tokenizer)
    temporary = task.part.with_name(f".{task.part.name}.{os.getpid()}")
    eos = np.array([tokenizer.eos], np.int32)
    with TokenWriter(temporary, vocab_size=tokenizer.vocab_size) as writer:
        for text, where in read_documents(task.piece, task.options):
            if not text:
                writer.num_skipped += 1
                continue
            tokens = np.concatenate([tokenizer.encode(text), eos])
            writer.append(tokens, num_bytes=len(text.encode("utf-8")), where=where)
        writer.finish()
    shutil.rmtree(task.part, ignore_errors=True)  # one that was found damaged
    temporary.rename(task.part)


@functools.lru_cache(1)
def _load_once(name: str) -> Tokenizer:
    # A path in the folder of a job: its fingerprint stands for the file's content.
    return load_tokenizer(name)


def _num_workers(workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if workers < 1:
        raise UserError(f"workers={workers}: must be at least 1.")
    return workers
