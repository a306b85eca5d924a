"""Text from a trained model: sampling, one compiled loop for the whole continuation."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.data.bytes import ByteTokenizer
from hybrid_jax.data.tokenizer import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.models.contract import Batch, Params

BYTES = ByteTokenizer()
# Buffers grow in these steps, so that a slightly longer prompt reuses the compiled loop.
LENGTH_STEP = 64


class LanguageModel(Protocol):
    """A model that can be sampled from: causal logits for every position."""

    config: DecoderConfig

    def logits(self, params: Params, batch: Batch) -> jax.Array:
        """Returns float32 [B, T, V]; position t sees tokens 0 to t."""
        ...


def generate(
    model: LanguageModel,
    params: Params,
    prompt: str | bytes | ArrayLike,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    key: jax.Array | None = None,
    tokenizer: Tokenizer = BYTES,
) -> str | bytes | np.ndarray:
    """Returns the prompt and its continuation, in the form in which the prompt came.

    Every new token costs a forward pass over the whole text: nothing is cached between tokens.

    >>> from hybrid_jax.config.model import preset
    >>> from hybrid_jax.models.decoder import Decoder
    >>> model = Decoder(preset("nano", num_layers=1, vocab_size=4))
    >>> params = model.init(jax.random.key(0))
    >>> generate(model, params, [0, 1, 2], max_new_tokens=5, key=jax.random.key(1)).shape
    (8,)

    Args:
      model: with `logits(params, batch)` and `config`.
      params: the canonical tree, whole or sharded, in the dtype to compute in.
      prompt: text, bytes, or tokens [T] or [B, T] (prompts of one length); not empty.
      max_new_tokens: how many to add; prompt and continuation fit in `max_length`.
      temperature: divides the logits; 0 takes the most likely token.
      top_k: sample among the k most likely tokens only; None: among all.
      key: decides the sample; not needed with temperature 0. The same key gives the same text.
      tokenizer: turns text into tokens and back; bytes need the byte tokenizer.

    Raises:
      UserError: an empty or too long prompt, a token outside the vocabulary, a negative
        temperature, top_k or max_new_tokens below 1, no key, bytes for a trained tokenizer.
    """
    tokens = _encode(prompt, tokenizer)
    _check_prompt(tokens, model.config, max_new_tokens)
    _check_sampling(temperature, top_k, key)
    rows = np.atleast_2d(tokens)
    start = rows.shape[1]
    stop = start + max_new_tokens
    length = min(-(-stop // LENGTH_STEP) * LENGTH_STEP, model.config.max_length)
    text = _extend(
        model,
        params,
        np.pad(rows, ((0, 0), (0, length - start))).astype(np.int32),
        start,
        stop,
        None if temperature == 0 else key,
        temperature,
        top_k=None if top_k is None else min(top_k, model.config.vocab_size),
    )
    text = np.asarray(text)[:, :stop]
    if isinstance(prompt, str):
        return tokenizer.decode(text[0])
    if isinstance(prompt, bytes):
        return BYTES.decode_bytes(text[0])
    return text.reshape(*tokens.shape[:-1], stop)


@partial(jax.jit, static_argnames=("model", "top_k"))
def _extend(
    model: LanguageModel,
    params: Params,
    text: jax.Array,
    start: jax.Array,
    stop: jax.Array,
    key: jax.Array | None,
    temperature: jax.Array,
    *,
    top_k: int | None,
) -> jax.Array:
    """Fills positions start to stop - 1 of text [B, T], one after the other; greedily without key.

    What stands beyond the position being filled does not matter: the model is causal.
    """

    def append(position: jax.Array, text: jax.Array) -> jax.Array:
        logits = model.logits(params, {"tokens": text})
        logits = lax.dynamic_index_in_dim(logits, position - 1, axis=1, keepdims=False)
        if key is None:
            token = jnp.argmax(logits, axis=-1)
        else:
            if top_k is not None:
                smallest = lax.top_k(logits, top_k)[0][:, -1:]
                logits = jnp.where(logits < smallest, -jnp.inf, logits)
            # The position, not a chain of splits: a sample does not depend on where it started.
            position_key = jax.random.fold_in(key, position)
            token = jax.random.categorical(position_key, logits / temperature)
        token = token.astype(text.dtype)
        return lax.dynamic_update_index_in_dim(text, token, position, axis=1)

    return lax.fori_loop(start, stop, append, text)


def _encode(prompt: str | bytes | ArrayLike, tokenizer: Tokenizer) -> np.ndarray:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if not isinstance(prompt, bytes):
        return np.asarray(prompt)
    if tokenizer.name != BYTES.name:
        raise UserError(
            f"a prompt of bytes needs the byte tokenizer, not {tokenizer.name}: give it as a str."
        )
    return BYTES.encode(prompt)


def _check_prompt(tokens: np.ndarray, config: DecoderConfig, max_new_tokens: int) -> None:
    if tokens.size == 0:
        raise UserError("the prompt is empty: give at least one token to continue from.")
    if tokens.ndim > 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(
            f"a prompt of {tokens.dtype} {list(tokens.shape)}: tokens are integers [T] or [B, T]."
        )
    outside = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
    if outside.size:
        raise UserError(
            f"the prompt holds token {outside[0]}, but the model's tokens are 0 to "
            f"{config.vocab_size - 1}: was it trained with this tokenizer?"
        )
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1.")
    length = tokens.shape[-1]
    if length + max_new_tokens > config.max_length:
        raise UserError(
            f"a prompt of {length} tokens and max_new_tokens={max_new_tokens} make "
            f"{length + max_new_tokens}, but the model's max_length={config.max_length}: shorten "
            "the prompt or ask for fewer tokens."
        )


def _check_sampling(temperature: float, top_k: int | None, key: jax.Array | None) -> None:
    if not temperature >= 0:
        raise UserError(f"temperature={temperature}: must be at least 0 (0: the likeliest token).")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k}: must be at least 1, or None for all tokens.")
    if temperature > 0 and key is None:
        raise UserError(
            f"temperature={temperature} draws at random and needs a key: pass "
            "key=jax.random.key(0), or temperature=0 for the likeliest token."
        )
