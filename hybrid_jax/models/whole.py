"""Any Flax module with a loss, NNX or Linen, as a `Model` of one part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

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
from hybrid_jax.models.functional import Functional
from hybrid_jax.models.switches import Switches, check_known


def from_flax(
    module: FlaxModule,
    loss: Loss,
    example_batch: Batch,
    *,
    inputs: Sequence[str],
    switches: Switches | None = None,
    constants: Sequence[type[nnx.Variable]] = (),
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
    >>> model.weights(batch)["loss"]
    Array([1., 1., 1., 1.], dtype=float32)
    >>> model.loss(params, batch).shape
    ()

    Args:
      module: a Linen module, or a function of `nnx.Rngs` that builds an NNX module.
      loss: (output, batch) -> losses [B] or [B, ...], neither averaged nor weighted: the
        framework multiplies by `batch["weights"]`, if any, and averages over the global batch.
      example_batch: arrays or `ShapeDtypeStruct`s; only shapes and dtypes matter.
      inputs: the batch entries that the module is called with, in order.
      switches: how the module is told its mode, besides `train` and `deterministic`: names of
        parameters of its call, or of attributes, each with its value in training mode; evaluation
        mode is the opposite. `{"is_training": True}`, or `{"frozen": False}`.
      constants: subclasses of `nnx.Variable` whose arrays are not trained. They, and arrays in
        attributes (position tables, masks), become part of the compiled program; they are no part
        of the state, so that `make` must build the same ones in every run.

    Raises:
      UserError: an input is not in the batch; the module holds other state, or assigns what it
        holds; its dropout is off in training mode, or on in evaluation mode; or the loss is not
        an array of floats with a batch dim.
    """
    check_example(example_batch, inputs=inputs)
    args = arguments(example_batch, inputs)
    part = functional(module, *args, switches=switches, constants=constants)
    check_known(switches, [part.switches], part.name)
    if not jax.tree.leaves(jax.eval_shape(part.init, jax.random.key(0))):
        raise UserError(f"{part.name} has no parameters: there is nothing to train.")
    return WholeModel(part, loss, example_batch, inputs)


class WholeModel:
    """A module that cannot be cut: all of it stands in "embed", and there are no layers.

    `embed` returns each example's loss, which `head` adds up; thus the train step needs no second
    path. Parameters: {"embed": the module's, "blocks": {}, "head": {}}.
    """

    num_layers = 0
    head_dims = ("batch",)
    losses: Mapping[str, float] = MappingProxyType({"loss": 1.0})

    def __init__(self, part: Functional, loss: Loss, example_batch: Batch, inputs: Sequence[str]):
        self._part, self._loss, self._inputs = part, loss, tuple(inputs)
        evaluated, trained = (
            loss_shape(
                loss,
                output_shapes(part, *arguments(example_batch, inputs), training=training),
                example_batch,
            )
            for training in (False, True)
        )
        if evaluated != trained:
            raise UserError(
                f"the loss has shape {trained} in training mode, but {evaluated} in evaluation "
                "mode: they must be equal."
            )
        self._entries = entries_of(example_batch, len(evaluated))

    def batch_entries(self) -> BatchEntries:
        """Returns what a batch must hold: what the example batch has."""
        return self._entries

    def init(self, key: jax.Array) -> Params:
        """Returns fresh parameters."""
        return {"embed": self._part.init(key), "blocks": {}, "head": {}}

    def axes(self) -> PyTree:
        """Returns the logical names of every parameter's dims."""
        return {"embed": self._part.axes, "blocks": {}, "head": {}}

    def weights(self, batch: Batch) -> Sums:
        """Returns the weights of the losses; ones where the batch has none."""
        shapes = jax.eval_shape(self._part.init, jax.random.key(0))
        losses = jax.eval_shape(lambda params: self._losses(params, batch, None), shapes)
        return {"loss": weights_of(batch, losses)}

    def loss(self, params: Params, batch: Batch, ctx: Context = ONE_DEVICE) -> jax.Array:
        """Returns the weighted sum of the losses of the whole module."""
        return self.head(params, self.embed(params, batch, ctx), batch, ctx)["loss"]

    def embed(self, shared: Params, batch: Batch, ctx: Context = ONE_DEVICE) -> jax.Array:
        """Returns each example's summed loss, [B, 1] float32."""
        losses = weighted(self._losses(shared["embed"], batch, ctx.key), batch)
        return losses.reshape(losses.shape[0], -1).sum(axis=1, keepdims=True)

    def layer(
        self, params: Params, carry: jax.Array, batch: Batch, ctx: Context = ONE_DEVICE
    ) -> jax.Array:
        """Returns the carry: a scan over no layers runs nothing, but it is traced."""
        return carry

    def head(
        self, shared: Params, carry: jax.Array, batch: Batch, ctx: Context = ONE_DEVICE
    ) -> Sums:
        """Returns the sum over the examples in `carry`."""
        return {"loss": jnp.sum(carry)}

    def _losses(self, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        args = arguments(batch, self._inputs)
        return self._loss(apply_examples(self._part, params, args, batch, key), batch)
