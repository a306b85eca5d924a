"""Splitting the last stage's tokens, so that every stage computes 1/S of the head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_jax.errors import UserError

PyTree = Any
BatchAxes = Mapping[str, tuple[str | None, ...]]

DIMS = ("batch", "length")


@dataclass(frozen=True)
class HeadSplit:
    """One dim of every leaf [b, T', ...] cut into `stages` equal slices, padded with zeros.

    Padded tokens carry weight zero, so they add nothing to the loss or the gradients.

    Attributes:
      stages: number of slices.
      dim: 0 (batch) or 1 (length).
      carry: shapes of what is split.
    """

    stages: int
    dim: int
    carry: PyTree

    def scatter(self, carry: PyTree) -> PyTree:
        """The last stage's `carry`, of which every stage receives its own slice.

        An all-to-all of which only the last source is kept: XLA:TPU would lower a `psum_scatter`
        of a masked value over this small group to an all-reduce, twice the bytes.
        """

        def scatter_leaf(x):
            x = self._pad(x)
            shape = (*x.shape[: self.dim], self.stages, -1, *x.shape[self.dim + 1 :])
            return lax.all_to_all(x.reshape(shape), "stage", self.dim, 0)[self.stages - 1]

        return jax.tree.map(scatter_leaf, carry)

    def gather(self, slices: PyTree) -> PyTree:
        """The inverse of `scatter`: all slices put together, on every stage."""

        def gather_leaf(x, shape):
            whole = lax.all_gather(x, "stage", axis=self.dim, tiled=True)
            return lax.slice_in_dim(whole, 0, shape.shape[self.dim], axis=self.dim)

        return jax.tree.map(gather_leaf, slices, self.carry)

    def own(
        self, batch: Mapping[str, jax.Array], axes: BatchAxes, stage: jax.Array | int
    ) -> dict[str, jax.Array]:
        """This stage's slice of what every stage holds; entries without the dim stay whole."""

        def own_slice(x):
            x = self._pad(x)
            size = x.shape[self.dim] // self.stages
            return lax.dynamic_slice_in_dim(x, stage * size, size, self.dim)

        has_dim = lambda name: axes[name][self.dim : self.dim + 1] == (DIMS[self.dim],)
        return {name: own_slice(x) if has_dim(name) else x for name, x in batch.items()}

    def _pad(self, x: jax.Array) -> jax.Array:
        padding = [(0, 0)] * x.ndim
        padding[self.dim] = (0, -x.shape[self.dim] % self.stages)
        return jnp.pad(x, padding)


def split_head(
    carry: PyTree, batch: Mapping[str, Any], stages: int, head_dims: tuple[str, ...]
) -> HeadSplit:
    """Chooses the dim to split: whole slices if possible, `batch` first.

    Args:
      carry: shapes, leaves [b, T', ...].
      batch: one microbatch.
      head_dims: those that the model allows, see `Model`.

    Raises:
      UserError: slices would need padding, and the batch has no `weights` to mask it.
    """
    leaves = jax.tree.leaves(carry)
    candidates = [dim for dim, name in enumerate(DIMS) if name in head_dims]
    even = [d for d in candidates if all(leaf.shape[d] % stages == 0 for leaf in leaves)]
    dim = even[0] if even else candidates[-1]
    if not even and "weights" not in batch:
        raise UserError(
            f"the head's {leaves[0].shape[dim]} rows do not split over stage={stages}: make the "
            f"microbatch size a multiple of {stages}, or put 'weights' in the batch to mask "
            "padding."
        )
    return HeadSplit(stages, dim, carry)
