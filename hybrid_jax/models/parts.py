"""Three Flax modules, NNX or Linen, as a `StagedModel` that pipelines."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hybrid_jax.errors import UserError
from hybrid_jax.models.calls import (
    FlaxModule,
    Loss,
    apply_examples,
    arguments,
    check_loss,
    functional,
    output_shapes,
    weighted,
)
from hybrid_jax.models.contract import Batch, Constrain, Params, PyTree, unconstrained
from hybrid_jax.models.functional import Functional, stack_axes, stack_init


def from_parts(
    embed: FlaxModule,
    block: FlaxModule,
    head: FlaxModule,
    loss: Loss,
    example_batch: Batch,
    *,
    num_layers: int,
    inputs: Sequence[str],
    block_inputs: Sequence[str] = (),
    head_dims: tuple[str, ...] = ("batch",),
) -> PartsModel:
    """Returns three modules as a model that also pipelines: head(block(... block(embed(inputs)))).

    Args:
      embed: called with the batch entries `inputs`; returns x [B, T, D].
      block: called with x and the batch entries `block_inputs`; returns the next x. It is
        initialised `num_layers` times, with leaves stacked [L, ...].
      head: called with the last x; its output goes to `loss`.
      loss, example_batch: as for `from_flax`.
      num_layers: number of blocks.
      head_dims: ("batch", "length") if head and loss treat tokens independently; a pipeline then
        shares the head's work more evenly.

    Raises:
      UserError: as for `from_flax`, or the block changes the shape or dtype of x.
    """
    if num_layers < 1:
        raise UserError(f"num_layers={num_layers} must be at least 1.")
    embed_part = functional(embed, *arguments(example_batch, inputs))
    x = output_shapes(embed_part, *arguments(example_batch, inputs))
    extras = arguments(example_batch, block_inputs)
    block_part = functional(block, x, *extras)
    y = output_shapes(block_part, x, *extras)
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        raise UserError(
            f"block maps {x.dtype}{list(x.shape)} to {y.dtype}{list(y.shape)}: all layers of a "
            "pipeline must return what they are given; change shapes in embed or head."
        )
    parts = (embed_part, block_part, functional(head, x))
    return PartsModel(parts, loss, example_batch, num_layers, inputs, block_inputs, head_dims)


class PartsModel:
    """Three modules in sequence; see `StagedModel` for the contract of its methods."""

    def __init__(
        self,
        parts: tuple[Functional, Functional, Functional],
        loss: Loss,
        example_batch: Batch,
        num_layers: int,
        inputs: Sequence[str],
        block_inputs: Sequence[str],
        head_dims: tuple[str, ...],
    ):
        self._embed, self._block, self._head = parts
        self._loss, self._inputs, self._block_inputs = loss, tuple(inputs), tuple(block_inputs)
        self.num_layers, self.head_dims = num_layers, head_dims
        x = output_shapes(self._embed, *arguments(example_batch, inputs))
        check_loss(loss, output_shapes(self._head, x), example_batch)

    def init(self, key: jax.Array) -> Params:
        """Returns fresh parameters, blocks stacked [L, ...]."""
        embed_key, blocks_key, head_key = jax.random.split(key, 3)
        return {
            "embed": self._embed.init(embed_key),
            "blocks": stack_init(self._block.init, self.num_layers)(blocks_key),
            "head": self._head.init(head_key),
        }

    def axes(self) -> PyTree:
        """Returns the logical names of every parameter's dims."""
        return {
            "embed": self._embed.axes,
            "blocks": stack_axes(self._block.axes),
            "head": self._head.axes,
        }

    def embed(
        self,
        outer: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        constrain: Constrain = unconstrained,
    ) -> jax.Array:
        """Returns x [B, T, D]."""
        args = arguments(batch, self._inputs)
        return apply_examples(self._embed, outer["embed"], args, batch, key)

    def block(
        self,
        layer_params: Params,
        x: jax.Array,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        constrain: Constrain = unconstrained,
    ) -> jax.Array:
        """Returns one layer's output [B, T, D]."""
        args = [x, *arguments(batch, self._block_inputs)]
        return apply_examples(self._block, layer_params, args, batch, key)

    def head(
        self, outer: Params, x: jax.Array, batch: Batch, *, constrain: Constrain = unconstrained
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (weighted sum of losses, sum of weights); the head runs without dropout."""
        output = self._head.apply(outer["head"], x)
        losses, weights = weighted(self._loss(output, batch), batch)
        return jnp.sum(losses), jnp.sum(weights)
