"""Splitting the last stage's tokens, so that every stage computes 1/S of the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_jax.errors import UserError

PyTree = Any


@dataclass(frozen=True)
class TokenSplit:
    """One dim of [b, T, ...] cut into `stages` equal slices, padded with zeros where it must be.

    Padded tokens carry weight zero, so they add nothing to the loss or the gradients.

    Attributes:
      stages: number of slices.
      dim: 0 (batch) or 1 (length).
      size: length of the dim before padding.
    """

    stages: int
    dim: int
    size: int

    @property
    def slice_size(self) -> int:
        """Length of one slice, rounded up."""
        return -(-self.size // self.stages)

    def scatter(self, x: jax.Array) -> jax.Array:
        """The last stage's `x`, of which every stage receives its own slice.

        An all-to-all of which only the last source is kept: XLA:TPU would lower a `psum_scatter`
        of a masked value over this small group to an all-reduce, twice the bytes.
        """
        x = self._pad(x)
        shape = (*x.shape[: self.dim], self.stages, self.slice_size, *x.shape[self.dim + 1 :])
        return lax.all_to_all(x.reshape(shape), "stage", self.dim, 0)[self.stages - 1]

    def gather(self, x: jax.Array) -> jax.Array:
        """The inverse of `scatter`: all slices put together, on every stage."""
        whole = lax.all_gather(x, "stage", axis=self.dim, tiled=True)
        return lax.slice_in_dim(whole, 0, self.size, axis=self.dim)

    def own(self, tree: PyTree, stage: jax.Array | int) -> PyTree:
        """This stage's slice of what every stage holds; arrays without the dim stay whole."""

        def own_slice(x):
            if x.ndim <= self.dim:
                return x
            return lax.dynamic_slice_in_dim(
                self._pad(x), stage * self.slice_size, self.slice_size, self.dim
            )

        return jax.tree.map(own_slice, tree)

    def _pad(self, x: jax.Array) -> jax.Array:
        padding = [(0, 0)] * x.ndim
        padding[self.dim] = (0, self.slice_size * self.stages - self.size)
        return jnp.pad(x, padding)


def split_tokens(
    x: jax.Array, microbatch: dict[str, Any], stages: int, head_dims: tuple[str, ...]
) -> TokenSplit:
    """Chooses the dim of `x` [b, T, ...] to split: whole slices if possible, `batch` first.

    Raises:
      UserError: slices would need padding, and the batch has no `weights` to mask it.
    """
    candidates = [dim for dim, name in enumerate(("batch", "length")) if name in head_dims]
    even = [dim for dim in candidates if x.shape[dim] % stages == 0]
    dim = even[0] if even else candidates[-1]
    if not even and "weights" not in microbatch:
        raise UserError(
            f"the head's {x.shape[dim]} rows do not split over stage={stages}: make the microbatch "
            f"size a multiple of {stages}, or put 'weights' in the batch to mask padding."
        )
    return TokenSplit(stages, dim, x.shape[dim])
