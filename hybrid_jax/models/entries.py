"""What a model takes in its batch, said once: names, dims, kinds of numbers and their range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.errors import UserError

IGNORED = -100
"""A target of this value has weight 0, as in PyTorch and Hugging Face `transformers`."""

Kind = Literal["integer", "float", "bool"]


@dataclass(frozen=True)
class Entry:
    """One array of a batch.

    Attributes:
      axes: logical name of every dim, "batch" first. Dims of one name have one size; None is a dim
        of any size.
      dtype: what the model is given; a batch may hold any width of the same kind.
      below: integers must lie in [0, below); None: any.
      ignored: an integer that is allowed besides; None: none is.
      is_weight: whether the numbers are weights: finite, not negative, booleans and integers too,
        and [B] as well as [B, T], one weight for all that belongs to an example.
      is_required: whether a batch without it is refused.
      is_filled: whether a batch without it gets ones.
      example: its shape in an example batch, from which dims without a name take their size where
        a step is lowered without a batch.
    """

    axes: tuple[str | None, ...]
    dtype: str = "int32"
    below: int | None = None
    ignored: int | None = None
    is_weight: bool = False
    is_required: bool = True
    is_filled: bool = False
    example: tuple[int, ...] = ()


@dataclass(frozen=True)
class BatchEntries:
    """All arrays that a model takes; a batch with any other is refused.

    Attributes:
      entries: by name.
      longest: the largest size of a dim by its name, such as the rows of a table of positions,
        where the batch does not say the positions itself.
    """

    entries: Mapping[str, Entry]
    longest: Mapping[str, int]

    def shapes(self, sizes: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a batch of what is required or filled.

        >>> token_entries(64).shapes((8, 16))["weights"]
        ShapeDtypeStruct(shape=(8, 16), dtype=float32)

        Args:
          sizes: (B, T), or (B,) where no entry has a length.

        Raises:
          UserError: an entry's size is neither among them nor in an example.
        """
        known: dict[str | None, int] = dict(zip(("batch", "length"), sizes, strict=False))

        def shape(name: str, entry: Entry) -> tuple[int, ...]:
            example = entry.example or (0,) * len(entry.axes)
            dims = [known.get(axis, size) for axis, size in zip(entry.axes, example, strict=True)]
            if 0 in dims:
                named = ", ".join(axis or "any" for axis in entry.axes)
                raise UserError(
                    f"batch_shape={sizes!r} does not say the size of {name!r}, [{named}]: give "
                    "(B, T), or the shapes of all entries."
                )
            return tuple(dims)

        return {
            name: jax.ShapeDtypeStruct(shape(name, entry), np.dtype(entry.dtype))
            for name, entry in self.entries.items()
            if entry.is_required or entry.is_filled
        }

    def random(self, sizes: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
        """Returns a batch of random numbers in range, weights one; arguments as of `shapes`.

        Integers without a range are 0, which is one of every set of labels or table of rows.
        """
        rng = np.random.default_rng(seed)

        def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
            entry = self.entries[name]
            if entry.is_weight:
                return np.ones(shape, entry.dtype)
            if kind_of(entry.dtype) == "float":
                return rng.normal(size=shape).astype(entry.dtype)
            return rng.integers(0, entry.below or 1, shape).astype(entry.dtype)

        return {name: array(name, leaf.shape) for name, leaf in self.shapes(sizes).items()}


def token_entries(vocab_size: int, num_positions: int | None = None) -> BatchEntries:
    """Returns the entries of a language model.

    >>> token_entries(50257).entries["targets"].below
    50257

    Args:
      vocab_size: tokens and targets lie below it; a target of `IGNORED` has weight 0.
      num_positions: rows of a table of learned positions; None: positions have no limit.
    """
    tokens = ("batch", "length")
    return BatchEntries(
        {
            "tokens": Entry(tokens, below=vocab_size),
            "targets": Entry(tokens, below=vocab_size, ignored=IGNORED),
            "weights": Entry(tokens, "float32", is_weight=True, is_required=False, is_filled=True),
            "positions": Entry(tokens, below=num_positions or 2**31, is_required=False),
            "segment_ids": Entry(tokens, is_required=False),
        },
        {} if num_positions is None else {"length": num_positions},
    )


def example_entries(
    example_batch: Mapping[str, Any], loss_rank: int, length: int | None = None
) -> BatchEntries:
    """Returns the entries of a user's model from an example of its batch.

    Its arrays say names, ranks and dtypes; sizes may differ. `weights` may be left out or added.

    >>> sorted(example_entries({"image": np.zeros((8, 784), np.float32)}, loss_rank=1).entries)
    ['image', 'weights']

    Args:
      example_batch: arrays or their shapes [B, ...].
      loss_rank: dims of the losses, which weights share.
      length: of a model whose tokens are independent in the head: a second dim of this size is
        that of the tokens, named "length". None: no dim is.
    """

    def entry(leaf: Any) -> Entry:
        second = "length" if leaf.shape[1:2] == (length,) else None
        axes = ("batch", second, *[None] * len(leaf.shape))[: len(leaf.shape)]
        return Entry(axes, str(np.dtype(leaf.dtype)), example=tuple(leaf.shape))

    entries = {name: entry(leaf) for name, leaf in example_batch.items() if name != "weights"}
    second = None if length is None else "length"
    axes = ("batch", second, *[None] * loss_rank)[:loss_rank]
    weights = Entry(axes, "float32", is_weight=True, is_required=False)
    return BatchEntries({**entries, "weights": weights}, {})


def kind_of(dtype: Any) -> Kind | None:
    """Returns the kind of numbers that a dtype holds; None for text, objects and the like.

    >>> kind_of(np.uint8), kind_of(jnp.bfloat16), kind_of(np.dtype("U3"))
    ('integer', 'float', None)
    """
    kinds: dict[Kind, Any] = {"integer": jnp.integer, "float": jnp.floating, "bool": jnp.bool_}
    return next((kind for kind, parent in kinds.items() if jnp.issubdtype(dtype, parent)), None)
