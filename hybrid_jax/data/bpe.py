"""Byte-pair encoding with Hugging Face's `tokenizers`: trained on local text, or loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from hybrid_jax.data.entries import expand, kind
from hybrid_jax.errors import RunError, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HuggingFaceTokenizer

FILE_NAME, CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"
END_OF_TEXT = "<|endoftext|>"
# Names that others give to the end-of-text token, where no tokenizer_config.json says it.
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
NUM_BYTES = 256


class TrainedTokenizer:
    """The tokenizer in a `tokenizer.json`, with nothing added around the text.

    Special tokens that are spelled out in a text are encoded as the characters they consist of, so
    that a text cannot end a document.

    Args:
      path: of the file. The end-of-text token is the `eos_token` of a `tokenizer_config.json`
        beside it, else the one with a usual name.

    Attributes:
      name: the path.
      vocab_size: one more than the largest token.
      eos: the end-of-text token.
      files: all that decide the tokens, to be copied or compared.

    Raises:
      UserError: a damaged file, or one without an end-of-text token.
    """

    def __init__(self, path: Path) -> None:
        tokenizers = _import_tokenizers()
        self.name = str(path)
        try:
            inner: HuggingFaceTokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more special
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.name} is not a tokenizer file ({reason}): give a {FILE_NAME} as written by "
                "`hybrid-jax data tokenizer` or by Hugging Face's tokenizers."
            ) from None
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        self._inner = inner
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=0) + 1
        self.eos = _find_end(path, vocabulary)
        files = (path, path.with_name(CONFIG_NAME))
        self.files = tuple(file for file in files if kind(file) == "file")

    def encode(self, text: str, /) -> np.ndarray:
        """Returns the tokens of `text`, int32 [T], without special tokens."""
        # A batch of one: without the offsets that `encode` also computes, a quarter faster.
        [encoding] = self._inner.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, np.int32)

    def decode(self, tokens: ArrayLike, /) -> str:
        """Returns the text of `tokens` [T]; special tokens are left out."""
        return self._inner.decode(np.asarray(tokens).tolist(), skip_special_tokens=True)


def train_bpe(
    texts: Iterable[str], vocab_size: int, path: str | Path, *, overwrite: bool = False
) -> TrainedTokenizer:
    """Trains a byte-level BPE on `texts`, writes its `tokenizer.json` and returns it.

    Token 0 is `<|endoftext|>`, tokens 1 to 256 are the bytes: no text is lost. Where the texts have
    too few pairs to merge, the vocabulary is smaller than was asked for.

    >>> import tempfile
    >>> tokenizer = train_bpe(["low lower lowest"] * 9, 260, tempfile.mkdtemp())
    >>> tokenizer.encode("lower").size, tokenizer.decode(tokenizer.encode("Ω lower\\n"))
    (3, 'Ω lower\\n')

    Args:
      texts: read once.
      vocab_size: at least 257.
      path: the folder to write to; made if it is missing.
      overwrite: replace a tokenizer that is there.

    Raises:
      UserError: a vocabulary too small for the bytes, no text, or a tokenizer is there already.
      RunError: the disk is full.
    """
    tokenizers = _import_tokenizers()
    if vocab_size < NUM_BYTES + 1:
        raise UserError(
            f"vocab_size={vocab_size}: must be at least {NUM_BYTES + 1}, the bytes and "
            f"{END_OF_TEXT}."
        )
    file = expand(path) / FILE_NAME
    if kind(file) != "nothing" and not overwrite:
        raise UserError(f"{file} exists: choose another folder, or overwrite=True (--overwrite).")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be made: {error.strerror}.") from None
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    temporary = file.with_name(f".{FILE_NAME}.{os.getpid()}")
    try:
        temporary.write_text(inner.to_str(pretty=True), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise RunError(f"writing {file} failed: {error.strerror}.") from None
    return TrainedTokenizer(file)


def _import_tokenizers():
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "a trained tokenizer needs the package tokenizers: pip install 'hybrid-jax[bpe]'."
        ) from None
    return tokenizers


def _find_end(path: Path, vocabulary: dict[str, int]) -> int:
    config = path.with_name(CONFIG_NAME)
    named = None
    if kind(config) == "file":
        try:
            named = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
        except OSError as error:
            raise UserError(f"{config} cannot be read: {error.strerror}.") from None
        except (ValueError, AttributeError, RecursionError):
            raise UserError(f"{config} is not a JSON object: correct or remove it.") from None
        # Hugging Face writes the token itself or a description of it.
        named = named.get("content") if isinstance(named, dict) else named
        if named is not None and not (isinstance(named, str) and named in vocabulary):
            raise UserError(f"{config}: eos_token {named!r} is not in the vocabulary of {path}.")
    ends = [named] if named is not None else [end for end in KNOWN_ENDS if end in vocabulary]
    if not ends:
        raise UserError(
            f"{path} has no end-of-text token (looked for {', '.join(KNOWN_ENDS)}): name it as "
            f"eos_token in {config}."
        )
    return vocabulary[ends[0]]
