"""Small corpora and what can happen to their files."""

import hashlib
import json
import os
from contextlib import contextmanager

import numpy as np

from hybrid_jax.data.writer import TokenWriter

DOCUMENTS = [[1, 2, 0], [0], [5, 6, 7, 0], [258, 300, 3, 0], [17, 0]]
VOCAB_SIZE = 301


def write_corpus(folder, documents=DOCUMENTS, vocab_size=VOCAB_SIZE):
    with TokenWriter(folder, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.append(document, num_bytes=2 * len(document))
        writer.finish(sources=("a.txt",))
    return folder


def change_header(folder, **values):
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(header | values))


def write_by_hand(folder, tokens, starts, vocab_size, dtype):
    """What another program may write: files that no one checked, with honest checksums."""
    folder.mkdir(exist_ok=True)
    files = {
        "tokens.bin": np.asarray(tokens, dtype).tobytes(),
        "starts.bin": np.asarray(starts, "<i8").tobytes(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    header = {
        "num_tokens": len(tokens),
        "num_documents": len(starts),
        "num_bytes": 9,
        "num_skipped": 0,
        "vocab_size": vocab_size,
        "dtype": dtype,
        "tokenizer": "bytes",
        "fingerprint": sums["tokens.bin"],
        "starts_fingerprint": sums["starts.bin"],
        "sources": [],
        "job": "",
        "version": 2,
    }
    (folder / "header.json").write_text(json.dumps(header))
    return folder


@contextmanager
def as_nobody():
    """Root may do everything, so that it must be someone else for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(before)
