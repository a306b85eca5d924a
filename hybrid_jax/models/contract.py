"""What the train step needs of a model: pure functions, cut where a pipeline cuts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from hybrid_jax.models.context import Context
from hybrid_jax.models.entries import BatchEntries

PyTree = Any
Params = dict[str, Any]
Batch = dict[str, jax.Array]
Carry = PyTree
Sums = dict[str, jax.Array]


@runtime_checkable
class Model(Protocol):
    """A model in three parts: embedding, `num_layers` equal layers, head.

    Parameters are nested dicts {"embed": ..., "blocks": ..., "head": ...} of float32 arrays; every
    leaf of "blocks" is stacked over layers, [L, ...]. `shared` is {"embed": ..., "head": ...}: both
    outer parts see all of it, so they may share a table. The parts compute in the parameters'
    dtype; norms, softmax and losses are float32.

    What flows from layer to layer, the carry, is an array or any pytree of float arrays whose
    leaves are [b, T', ...]: leading dims of examples and of tokens, of which every leaf may have
    its own number.

    A batch holds arrays [B, ...]; `batch_entries` declares them. The train step adds `example` [B]
    int32, the index of an example in the global batch: what is random depends on (key, example)
    alone, so that it does not change with the layout.

    The head returns sums over the tokens it is given. Each has a name and a weight: what is
    reported, and trained on, is the sum over all tokens divided by the sum of their weights.

    Attributes:
      num_layers: may be 0, with {} for "blocks".
      head_dims: the dims of the carry along which `head` may be given one slice at a time and the
        results added: ("batch", "length"), or ("batch",) for a head that looks along the length.
      losses: the sums that are trained on, with their coefficients; "loss" first. The head's other
        sums are reported only.
    """

    num_layers: int
    head_dims: tuple[str, ...]
    losses: Mapping[str, float]

    def init(self, key: jax.Array) -> Params:
        """Returns fresh parameters; a pure function of `key`, whatever their sharding."""
        ...

    def axes(self) -> PyTree:
        """Returns the tree of `init` with a tuple of logical names, one per dim, for each leaf."""
        ...

    def batch_entries(self) -> BatchEntries:
        """Returns what a batch must hold."""
        ...

    def weights(self, batch: Batch) -> Sums:
        """Returns the weights of each of the head's sums, of any shape; the step adds them up."""
        ...

    def embed(self, shared: Params, batch: Batch, ctx: Context) -> Carry:
        """Returns the input of the first layer."""
        ...

    def layer(self, params: Params, carry: Carry, batch: Batch, ctx: Context) -> Carry:
        """Returns one layer's output; `params` is its slice of "blocks"."""
        ...

    def head(self, shared: Params, carry: Carry, batch: Batch, ctx: Context) -> Sums:
        """Returns {"loss": its weighted sum, ...}, float32; those in `losses` are scalars."""
        ...
