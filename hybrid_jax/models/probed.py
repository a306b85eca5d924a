"""A model with probes: what is not finite, layer by layer and example by example."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hybrid_jax.models.contract import Batch, Constrain, Params, PyTree, StagedModel

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
      model: any `StagedModel`.
      num_examples: of the global batch.
    """

    def __init__(self, model: StagedModel, num_examples: int) -> None:
        self.model, self.num_examples = model, num_examples
        self.num_layers, self.head_dims = model.num_layers, model.head_dims

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

    def embed(
        self, outer: Params, batch: Batch, *, key: jax.Array | None, constrain: Constrain
    ) -> jax.Array:
        """Returns the model's embedding, probed."""
        x = self.model.embed(_without_probe(outer), batch, key=key, constrain=constrain)
        return _probe(x, outer["embed"]["probe"], batch["example"])

    def block(
        self,
        layer_params: Params,
        x: jax.Array,
        batch: Batch,
        *,
        key: jax.Array | None,
        constrain: Constrain,
    ) -> jax.Array:
        """Returns the layer's output, probed."""
        if not self.num_layers:
            return x
        y = self.model.block(layer_params["model"], x, batch, key=key, constrain=constrain)
        return _probe(y, layer_params["probe"], batch["example"])

    def head(
        self, outer: Params, x: jax.Array, batch: Batch, *, constrain: Constrain
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the model's sums."""
        return self.model.head(_without_probe(outer), x, batch, constrain=constrain)


def _without_probe(outer: Params) -> Params:
    return {**outer, "embed": outer["embed"]["model"]}


@jax.custom_vjp
def _probe(x: jax.Array, probe: jax.Array, example: jax.Array) -> jax.Array:
    """Returns x [b, ...]; `example` [b] says which rows of the probe belong to it."""
    del probe, example
    return x


def _probe_forward(x, probe, example):
    return x, (_is_bad(x), probe, example)


def _probe_backward(residuals, dy) -> tuple[Any, ...]:
    bad, probe, example = residuals
    found = jnp.stack([bad, _is_bad(dy)], axis=-1).astype(probe.dtype)
    return dy, jnp.zeros_like(probe).at[example].add(found), None


_probe.defvjp(_probe_forward, _probe_backward)


def _is_bad(x: jax.Array) -> jax.Array:
    """Whether anything of each example is not finite, [b]."""
    return ~jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))
