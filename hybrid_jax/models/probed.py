"""A model with probes: what is not finite, layer by layer and example by example."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hybrid_jax.models.context import Context
from hybrid_jax.models.contract import Batch, Carry, Model, Params, PyTree, Sums
from hybrid_jax.models.entries import BatchEntries

FORWARD, GRADIENT = 0, 1
"""The columns of a probe: the array itself, and the loss's gradient with respect to it."""


class Probed:
    """`model`, with a probe behind the embedding and behind every layer.

    A probe is a parameter [examples, 2] of zeros that changes nothing. What is returned as its
    gradient is not one: it is not zero for the examples that were not finite there, in the forward
    pass (column `FORWARD`) or in the backward pass (`GRADIENT`). So the train step itself, under
    any schedule and on any layout, carries the findings home.

    Parameters: {"embed": {"model", "probe"}, "blocks": {"model", "probe"}, "head"}, where the
    layers' probes are [L, examples, 2].

    Args:
      model: any `Model`.
      num_examples: of the global batch.
    """

    def __init__(self, model: Model, num_examples: int) -> None:
        self.model, self.num_examples = model, num_examples
        self.num_layers, self.head_dims = model.num_layers, model.head_dims
        self.losses = model.losses

    def init(self, key: jax.Array) -> Params:
        """Returns the model's fresh parameters, and probes."""
        return self.wrap(self.model.init(key))

    def wrap(self, params: Params) -> Params:
        """Returns parameters of the model with probes."""
        probe = jnp.zeros((self.num_examples, 2))
        blocks: Params = {}
        if self.num_layers:
            probes = jnp.zeros((self.num_layers, *probe.shape))
            blocks = {"model": params["blocks"], "probe": probes}
        return {**params, "embed": {"model": params["embed"], "probe": probe}, "blocks": blocks}

    def axes(self) -> PyTree:
        """Returns the logical names of every parameter's dims; those of probes are never split."""
        axes = self.model.axes()
        blocks: PyTree = {}
        if self.num_layers:
            blocks = {"model": axes["blocks"], "probe": ("layers", None, None)}
        return {**axes, "embed": {"model": axes["embed"], "probe": (None, None)}, "blocks": blocks}

    def batch_entries(self) -> BatchEntries:
        """Returns what the model's batch must hold."""
        return self.model.batch_entries()

    def weights(self, batch: Batch) -> Sums:
        """Returns the model's weights."""
        return self.model.weights(batch)

    def embed(self, shared: Params, batch: Batch, ctx: Context) -> Carry:
        """Returns the model's embedding, probed."""
        carry = self.model.embed(_without_probe(shared), batch, ctx)
        return _probe(carry, shared["embed"]["probe"], batch["example"])

    def layer(self, params: Params, carry: Carry, batch: Batch, ctx: Context) -> Carry:
        """Returns the layer's output, probed."""
        if not self.num_layers:
            return carry
        carry = self.model.layer(params["model"], carry, batch, ctx)
        return _probe(carry, params["probe"], batch["example"])

    def head(self, shared: Params, carry: Carry, batch: Batch, ctx: Context) -> Sums:
        """Returns the model's sums."""
        return self.model.head(_without_probe(shared), carry, batch, ctx)


def _without_probe(shared: Params) -> Params:
    return {**shared, "embed": shared["embed"]["model"]}


@jax.custom_vjp
def _probe(carry: Carry, probe: jax.Array, example: jax.Array) -> Carry:
    """Returns the carry, leaves [b, ...]; `example` [b] says whose each row of the probe is."""
    del probe, example
    return carry


def _probe_forward(carry, probe, example):
    return carry, (_is_bad(carry), probe, example)


def _probe_backward(residuals, dy) -> tuple[Any, ...]:
    bad, probe, example = residuals
    found = jnp.stack([bad, _is_bad(dy)], axis=-1).astype(probe.dtype)
    return dy, jnp.zeros_like(probe).at[example].add(found), None


_probe.defvjp(_probe_forward, _probe_backward)


def _is_bad(carry: Carry) -> jax.Array:
    """Whether anything of each example is not finite, [b]."""
    leaves = [~jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(carry)]
    return jnp.stack(leaves).any(axis=0)
