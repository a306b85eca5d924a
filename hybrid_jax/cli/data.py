"""`hybrid-jax data`: texts to token files, a tokenizer from texts, a look at token files."""

from __future__ import annotations

import argparse
from collections.abc import Callable

# What reads data is imported when a command runs: help and mistakes come at once.

SHOWN = 300


def prepare(
    inputs: list[str],
    output: str,
    tokenizer: str = "bytes",
    text_field: str = "text",
    separator: str | None = None,
    workers: int | None = None,
    empty: str = "error",
    overwrite: bool = False,
) -> None:
    """Tokenize text files into a folder of token files; a killed run resumes when repeated."""
    from rich.console import Console

    from hybrid_jax.data.prepare import prepare as prepare_corpus
    from hybrid_jax.data.progress import ByteBar

    with ByteBar(Console()) as bar:
        prepare_corpus(
            inputs,
            output,
            tokenizer=tokenizer,
            text_field=text_field,
            separator=_line(separator),
            empty=empty,
            workers=workers,
            overwrite=overwrite,
            progress=bar,
        )
    show(output, documents=0)


def tokenizer(
    inputs: list[str],
    output: str,
    vocab_size: int,
    text_field: str = "text",
    separator: str | None = None,
    empty: str = "error",
    overwrite: bool = False,
) -> None:
    """Train a byte-level BPE on text files and write its tokenizer.json."""
    from hybrid_jax.data.bpe import train_bpe
    from hybrid_jax.data.files import find_files
    from hybrid_jax.data.pieces import plan
    from hybrid_jax.data.readers import ReadOptions, read_documents

    options = ReadOptions(text_field, _line(separator), empty)
    files, _ = find_files(inputs)
    pieces = plan(files, options, piece_bytes=1 << 40)  # in one process
    texts = (
        document.text
        for piece in pieces
        for document in read_documents(piece, options)
        if document.text
    )
    trained = train_bpe(texts, vocab_size, output, overwrite=overwrite)
    print(f"{trained.name}: {trained.vocab_size:,} tokens")
    if trained.vocab_size < vocab_size:
        print(f"fewer than the {vocab_size:,} asked for: the texts have no more pairs to merge")


def show(path: str, documents: int = 3) -> None:
    """Print what is in a folder of token files, and its first documents."""
    from hybrid_jax.data.assemble import few
    from hybrid_jax.data.entries import expand
    from hybrid_jax.data.header import read_header
    from hybrid_jax.data.tokenizer import load_tokenizer
    from hybrid_jax.data.tokens import open_tokens

    source, header = open_tokens(path), read_header(expand(path))
    ratio = source.num_bytes / source.num_tokens
    print(
        f"{path}\n"
        f"  documents    {source.num_documents:,} ({header.num_skipped:,} empty ones skipped)\n"
        f"  tokens       {source.num_tokens:,}, {header.dtype}, {ratio:.2f} bytes of text each\n"
        f"  text         {source.num_bytes:,} bytes\n"
        f"  tokenizer    {header.tokenizer}, {source.vocab_size:,} tokens\n"
        f"  fingerprint  {source.fingerprint}\n"
        f"  sources      {len(header.sources):,}: {few(header.sources)}"
    )
    if documents > 0:
        decode = load_tokenizer(source.tokenizer).decode
        for index, start in enumerate(source.starts[:documents]):
            last = index + 1 == source.num_documents
            stop = source.num_tokens if last else source.starts[index + 1]
            # No more tokens than can be shown: a document may be the whole corpus.
            text = decode(source.tokens[start : min(stop, start + SHOWN)])[:SHOWN]
            # The last character may have been cut.
            text = text.rstrip("\N{REPLACEMENT CHARACTER}") + " …" if stop - start > SHOWN else text
            print(f"\ndocument {index}, {stop - start:,} tokens\n{text}")


COMMANDS: dict[str, Callable[..., None]] = {
    "prepare": prepare,
    "tokenizer": tokenizer,
    "show": show,
}


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the commands of `hybrid-jax data` and their options."""
    commands = parser.add_subparsers(dest="data_command", metavar="COMMAND")
    parsers = {}
    for name, command in COMMANDS.items():
        line = (command.__doc__ or "").strip()
        parsers[name] = commands.add_parser(name, help=line, description=line)
    _add_reading(parsers["prepare"], "the folder of token files to write")
    parsers["prepare"].add_argument(
        "--tokenizer",
        metavar="bytes|PATH",
        default="bytes",
        help="PATH is a tokenizer.json or its folder (default: bytes)",
    )
    parsers["prepare"].add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one for each CPU)"
    )
    _add_reading(parsers["tokenizer"], "the folder to write tokenizer.json to")
    parsers["tokenizer"].add_argument(
        "--vocab-size", type=int, metavar="N", required=True, help="tokens, at least 257"
    )
    parsers["show"].add_argument("path", metavar="DIR", help="a folder of token files")
    parsers["show"].add_argument(
        "--documents", type=int, default=3, metavar="N", help="how many to print (default: 3)"
    )


def _add_reading(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="a file (.txt, .jsonl, also with .gz or .xz, .parquet), folder or pattern",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help=output)
    parser.add_argument(
        "--text-field",
        metavar="NAME",
        default="text",
        help="the field of JSON objects, or column, with the text (default: text)",
    )
    parser.add_argument(
        "--separator",
        metavar="LINE",
        help="the line between two documents of a .txt file, '' for a blank line; without it a "
        "file is one document",
    )
    parser.add_argument(
        "--empty", metavar="error|skip", default="error", help="documents without text"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in DIR")


def _line(separator: str | None) -> str | None:
    # A shell passes "\n" on as it is written.
    return None if separator is None else separator.replace("\\n", "\n")
