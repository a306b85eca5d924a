"""Three Flax modules, NNX or Linen, as a `Model` that pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid_jax.errors import UserError
from hybrid_jax.models.calls import (
    FlaxModule,
    Loss,
    apply_examples,
    arguments,
    check_example,
    describe,
    entries_of,
    functional,
    loss_shape,
    output_shapes,
    weighted,
    weights_of,
)
from hybrid_jax.models.context import ONE_DEVICE, Context
from hybrid_jax.models.contract import Batch, Params, PyTree, Sums
from hybrid_jax.models.entries import BatchEntries
from hybrid_jax.models.functional import Functional, stack_axes, stack_init
from hybrid_jax.models.switches import Switches, check_known


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
    switches: Switches | None = None,
    constants: Sequence[type[nnx.Variable]] = (),
) -> PartsModel:
    """Returns three modules as a model that also pipelines: head(block(... block(embed(inputs)))).

    Args:
      embed: called with the batch entries `inputs`; returns x, [B, T, D] or any [B, ...].
      block: called with x and the batch entries `block_inputs`; returns the next x. It is
        initialised `num_layers` times, with leaves stacked [L, ...].
      head: called with the last x; its output goes to `loss`.
      loss, example_batch: as for `from_flax`.
      num_layers: number of blocks.
      head_dims: ("batch", "length") if head and loss treat tokens independently; a pipeline then
        shares the head's work more evenly. Batch entries with a second dim as long as x are taken
        to have one value for each token.
      switches, constants: as for `from_flax`, each of interest to one module or more. Constants of
        `block` are the same in all layers.

    Raises:
      UserError: as for `from_flax`, the block changes the shape or dtype of x, or the head draws
        random numbers.
    """
    if isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1:
        raise UserError(f"num_layers={num_layers!r} must be an integer of at least 1.")
    if tuple(head_dims) not in (("batch",), ("batch", "length")):
        raise UserError(f"head_dims={head_dims!r} must be ('batch',) or ('batch', 'length').")
    check_example(example_batch, inputs=inputs)
    check_example(example_batch, block_inputs=block_inputs)
    options = {"switches": switches, "constants": constants}
    args = arguments(example_batch, inputs)
    extras = arguments(example_batch, block_inputs)
    embed_part = functional(embed, *args, **options)
    x = _check_embed(embed_part, args)
    block_part = functional(block, x, *extras, **options)
    _check_block(block_part, x, extras)
    head_part = functional(head, x, **options)
    if head_part.stochastic:
        raise UserError(
            f"{head_part.name} draws random numbers in training mode, but a head runs without: "
            "move its dropout to the end of the block, or set its rate to 0."
        )
    parts = (embed_part, block_part, head_part)
    check_known(switches, [part.switches for part in parts], "none of the three modules")
    losses = loss_shape(loss, output_shapes(head_part, x), example_batch)
    if "length" in head_dims and losses[:2] != x.shape[:2]:
        raise UserError(
            f"head_dims={head_dims!r} needs one loss for each token, {list(x.shape[:2])}, not "
            f"{list(losses)}: use head_dims=('batch',)."
        )
    length = x.shape[1] if "length" in head_dims else None
    entries = entries_of(example_batch, len(losses), length)
    return PartsModel(parts, loss, entries, num_layers, inputs, block_inputs, tuple(head_dims))


def _check_embed(part: Functional, args: Sequence[Any]) -> jax.ShapeDtypeStruct:
    """Returns the shape of x, which `part` returns."""
    x, in_training = (output_shapes(part, *args, training=mode) for mode in (False, True))
    size = args[0].shape[0]
    if not _is_activation(x, size) or x != in_training:
        raise UserError(
            f"{part.name} as embed returns {_modes(x, in_training)}: it must return one array of "
            f"floats [{size}, ...], the input of the first block."
        )
    return x


def _check_block(part: Functional, x: jax.ShapeDtypeStruct, extras: Sequence[Any]) -> None:
    y, in_training = (output_shapes(part, x, *extras, training=mode) for mode in (False, True))
    if y != x or in_training != x:
        raise UserError(
            f"block maps {describe(x)} to {_modes(y, in_training)}: all layers of a pipeline must "
            "return what they are given; change shapes in embed or head."
        )


def _is_activation(x: Any, size: int) -> bool:
    is_array = isinstance(x, jax.ShapeDtypeStruct)
    return is_array and jnp.issubdtype(x.dtype, jnp.floating) and x.shape[:1] == (size,)


def _modes(evaluated: Any, trained: Any) -> str:
    if evaluated == trained:
        return describe(evaluated)
    return f"{describe(trained)} in training mode, {describe(evaluated)} in evaluation mode"


class PartsModel:
    """Three modules in sequence; see `Model` for the contract of its methods."""

    losses: Mapping[str, float] = MappingProxyType({"loss": 1.0})

    def __init__(
        self,
        parts: tuple[Functional, Functional, Functional],
        loss: Loss,
        entries: BatchEntries,
        num_layers: int,
        inputs: Sequence[str],
        block_inputs: Sequence[str],
        head_dims: tuple[str, ...],
    ):
        self._embed, self._block, self._head = parts
        self._loss, self._inputs, self._block_inputs = loss, tuple(inputs), tuple(block_inputs)
        self.num_layers, self.head_dims, self._entries = num_layers, head_dims, entries

    def batch_entries(self) -> BatchEntries:
        """Returns what a batch must hold: what the example batch has."""
        return self._entries

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

    def weights(self, batch: Batch) -> Sums:
        """Returns the weights of the losses; ones where the batch has none."""

        def losses(params, batch):
            output = self._head.apply(params["head"], self.embed(params, batch))
            return self._loss(output, batch)

        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return {"loss": weights_of(batch, jax.eval_shape(losses, shapes, batch))}

    def embed(self, shared: Params, batch: Batch, ctx: Context = ONE_DEVICE) -> jax.Array:
        """Returns x [B, T, D]."""
        args = arguments(batch, self._inputs)
        return apply_examples(self._embed, shared["embed"], args, batch, ctx.key)

    def layer(
        self, params: Params, carry: jax.Array, batch: Batch, ctx: Context = ONE_DEVICE
    ) -> jax.Array:
        """Returns one layer's output [B, T, D]."""
        args = [carry, *arguments(batch, self._block_inputs)]
        y = apply_examples(self._block, params, args, batch, ctx.key)
        # Float32 constants raise the dtype of what is computed with bf16 parameters.
        return y.astype(carry.dtype)

    def head(
        self, shared: Params, carry: jax.Array, batch: Batch, ctx: Context = ONE_DEVICE
    ) -> Sums:
        """Returns the weighted sum of losses; the head runs without dropout."""
        output = self._head.apply(shared["head"], carry)
        return {"loss": jnp.sum(weighted(self._loss(output, batch), batch))}
