"""Any Flax module with a loss, NNX or Linen, as a `StagedModel` of one part."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

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
from hybrid_jax.models.functional import Functional


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
    args = arguments(example_batch, inputs)
    return WholeModel(functional(module, *args), loss, example_batch, inputs)


class WholeModel:
    """A module that cannot be cut: all of it stands in "embed", and there are no layers.

    `embed` returns each example's (loss, weight) as x [B, 1, 2], which `head` adds up; thus the
    train step needs no second path. Parameters: {"embed": the module's, "blocks": {}, "head": {}}.
    """

    num_layers = 0
    head_dims = ("batch",)

    def __init__(self, part: Functional, loss: Loss, example_batch: Batch, inputs: Sequence[str]):
        self._part, self._loss, self._inputs = part, loss, tuple(inputs)
        check_loss(loss, output_shapes(part, *arguments(example_batch, inputs)), example_batch)

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
        args = arguments(batch, self._inputs)
        output = apply_examples(self._part, outer["embed"], args, batch, key)
        losses, weights = weighted(self._loss(output, batch), batch)
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
