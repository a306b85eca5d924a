"""A Flax module of yours, NNX or Linen, as a `StagedModel`: whole, or in the three parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from hybrid_jax.errors import UserError, nearest
from hybrid_jax.models.contract import Batch, Constrain, Params, PyTree, unconstrained
from hybrid_jax.models.functional import (
    Functional,
    from_linen,
    from_nnx,
    stack_axes,
    stack_init,
)

FlaxModule = linen.Module | Callable[[nnx.Rngs], nnx.Module]
Loss = Callable[[Any, Batch], jax.Array]


def from_flax(
    module: FlaxModule, loss: Loss, example_batch: Batch, *, inputs: Sequence[str]
) -> WholeModel:
    """Returns any module with a loss as a model that trains under replica, data and model axes.

    Logical names are those the module's parameters were declared with
    (`nnx.Param(..., out_sharding=names)`, `linen.with_logical_partitioning`); a parameter without
    names is never sharded by a rule. Its dropout depends on (key, example) only.

    >>> from flax import nnx
    >>> import optax
    >>> def xent(logits, batch):
    ...     return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    >>> batch = {"image": jnp.ones((4, 784)), "label": jnp.zeros(4, jnp.int32)}
    >>> linear = lambda rngs: nnx.Linear(784, 10, rngs=rngs)
    >>> model = from_flax(linear, xent, batch, inputs=["image"])
    >>> params = model.init(jax.random.key(0))
    >>> loss_sum, weight_sum = model.loss(params, batch)
    >>> float(weight_sum)
    4.0

    Args:
      module: a Linen module, or a function of `nnx.Rngs` that builds an NNX module.
      loss: (output, batch) -> losses [B] or [B, ...], neither averaged nor weighted: the
        framework multiplies by `batch["weights"]`, if any, and averages over the global batch.
      example_batch: arrays or `ShapeDtypeStruct`s; only shapes and dtypes matter.
      inputs: the batch entries that the module is called with, in order.

    Raises:
      UserError: an input is not in the batch, the module holds state that is not a parameter, or
        the loss has no batch dim.
    """
    args = _arguments(example_batch, inputs)
    return WholeModel(_functional(module, *args), loss, example_batch, inputs)


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
    embed_part = _functional(embed, *_arguments(example_batch, inputs))
    x = _output(embed_part, *_arguments(example_batch, inputs))
    extras = _arguments(example_batch, block_inputs)
    block_part = _functional(block, x, *extras)
    y = _output(block_part, x, *extras)
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        raise UserError(
            f"block maps {x.dtype}{list(x.shape)} to {y.dtype}{list(y.shape)}: all layers of a "
            "pipeline must return what they are given; change shapes in embed or head."
        )
    parts = (embed_part, block_part, _functional(head, x))
    return PartsModel(parts, loss, example_batch, num_layers, inputs, block_inputs, head_dims)


class WholeModel:
    """A module that cannot be cut: all of it stands in "embed", and there are no layers.

    `embed` returns each example's (loss, weight) as x [B, 1, 2], which `head` adds up; thus the
    train step needs no second path. Parameters: {"embed": the module's, "blocks": {}, "head": {}}.
    """

    num_layers = 0
    head_dims = ("batch",)

    def __init__(self, part: Functional, loss: Loss, example_batch: Batch, inputs: Sequence[str]):
        self._part, self._loss, self._inputs = part, loss, tuple(inputs)
        _check_loss(loss, _output(part, *_arguments(example_batch, inputs)), example_batch)

    def init(self, key: jax.Array) -> Params:
        """Returns fresh parameters."""
        return {"embed": self._part.init(key), "blocks": {}, "head": {}}

    def axes(self) -> PyTree:
        """Returns the logical names of every parameter's dims."""
        return {"embed": self._part.axes, "blocks": {}, "head": {}}

    def loss(
        self,
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        constrain: Constrain = unconstrained,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (weighted sum of losses, sum of weights) of the whole module."""
        x = self.embed(params, batch, key=key, constrain=constrain)
        return self.head(params, x, batch, constrain=constrain)

    def embed(
        self,
        outer: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        constrain: Constrain = unconstrained,
    ) -> jax.Array:
        """Returns each example's summed loss and weight, [B, 1, 2] float32."""
        args = _arguments(batch, self._inputs)
        output = _apply_examples(self._part, outer["embed"], args, batch, key)
        losses, weights = _weighted(self._loss(output, batch), batch)
        per_example = [x.reshape(x.shape[0], -1).sum(axis=1) for x in (losses, weights)]
        return jnp.stack(per_example, axis=-1)[:, None]

    def block(
        self,
        layer_params: Params,
        x: jax.Array,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        constrain: Constrain = unconstrained,
    ) -> jax.Array:
        """Returns x: a scan over no layers runs nothing, but it is traced."""
        return x

    def head(
        self, outer: Params, x: jax.Array, batch: Batch, *, constrain: Constrain = unconstrained
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the sums over the examples in `x`."""
        loss_sum, weight_sum = jnp.sum(x, axis=(0, 1))
        return loss_sum, weight_sum


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
        x = _output(self._embed, *_arguments(example_batch, inputs))
        _check_loss(loss, _output(self._head, x), example_batch)

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
        args = _arguments(batch, self._inputs)
        return _apply_examples(self._embed, outer["embed"], args, batch, key)

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
        args = [x, *_arguments(batch, self._block_inputs)]
        return _apply_examples(self._block, layer_params, args, batch, key)

    def head(
        self, outer: Params, x: jax.Array, batch: Batch, *, constrain: Constrain = unconstrained
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (weighted sum of losses, sum of weights); the head runs without dropout."""
        output = self._head.apply(outer["head"], x)
        losses, weights = _weighted(self._loss(output, batch), batch)
        return jnp.sum(losses), jnp.sum(weights)


def _functional(module: FlaxModule, *example_args: Any) -> Functional:
    if isinstance(module, linen.Module):
        return from_linen(module, *example_args)
    if isinstance(module, nnx.Module):
        name = type(module).__name__
        raise UserError(
            f"{name} is already built: pass the function that builds it, "
            f"`lambda rngs: {name}(..., rngs=rngs)`, so that its parameters can be born sharded."
        )
    return from_nnx(module)


def _arguments(batch: Batch, names: Sequence[str]) -> list[Any]:
    for name in names:
        if name not in batch:
            raise UserError(
                f"input {name!r} is not in the batch, which has {', '.join(batch)}."
                f"{nearest(name, batch)}"
            )
    return [batch[name] for name in names]


def _output(part: Functional, *args: Any) -> Any:
    """Shapes of what a module returns."""
    params = jax.eval_shape(part.init, jax.random.key(0))
    return jax.eval_shape(part.apply, params, *args)


def _apply_examples(
    part: Functional, params: Params, args: Sequence[Any], batch: Batch, key: jax.Array | None
) -> Any:
    """Calls a module; if it is random, for each example apart (vmapped), with a key of its own."""
    if key is None or not part.stochastic:
        return part.apply(params, *args)

    def one(example, args):
        example_key = jax.random.fold_in(key, example)
        output = part.apply(params, *(arg[None] for arg in args), key=example_key)
        return jax.tree.map(lambda x: x[0], output)

    return jax.vmap(one)(batch["example"], list(args))


def _weighted(losses: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Losses times weights, and the weights, both float32 and shaped like the losses."""
    weights = batch["weights"] if "weights" in batch else jnp.ones(losses.shape)
    if weights.shape != losses.shape:
        raise UserError(
            f"the loss has shape {losses.shape} but batch['weights'] has {weights.shape}: "
            "return one loss for each weight, neither summed nor averaged."
        )
    weights = weights.astype(jnp.float32)
    return losses.astype(jnp.float32) * weights, weights


def _check_loss(loss: Loss, output: Any, batch: Batch) -> None:
    losses = jax.eval_shape(loss, output, batch)
    size = next(iter(batch.values())).shape[0]
    if losses.ndim < 1 or losses.shape[0] != size:
        raise UserError(
            f"the loss returned shape {losses.shape} for a batch of {size} examples: return one "
            "loss for each example, [B] or [B, ...]; the framework averages."
        )
