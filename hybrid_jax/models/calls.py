"""How a user's Flax module and loss are called on a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from hybrid_jax.errors import UserError, nearest
from hybrid_jax.models.contract import Batch, Params
from hybrid_jax.models.functional import Functional, from_linen, from_nnx

FlaxModule = linen.Module | Callable[[nnx.Rngs], nnx.Module]
Loss = Callable[[Any, Batch], jax.Array]


def functional(module: FlaxModule, *example_args: Any) -> Functional:
    """The module, Linen or NNX, as pure functions; Linen takes shapes from `example_args`."""
    if isinstance(module, linen.Module):
        return from_linen(module, *example_args)
    if isinstance(module, nnx.Module):
        name = type(module).__name__
        raise UserError(
            f"{name} is already built: pass the function that builds it, "
            f"`lambda rngs: {name}(..., rngs=rngs)`, so that its parameters can be born sharded."
        )
    return from_nnx(module)


def arguments(batch: Batch, names: Sequence[str]) -> list[Any]:
    """The named entries of a batch, in order."""
    for name in names:
        if name not in batch:
            raise UserError(
                f"input {name!r} is not in the batch, which has {', '.join(batch)}."
                f"{nearest(name, batch)}"
            )
    return [batch[name] for name in names]


def output_shapes(part: Functional, *args: Any) -> Any:
    """Shapes of what a module returns."""
    params = jax.eval_shape(part.init, jax.random.key(0))
    return jax.eval_shape(part.apply, params, *args)


def apply_examples(
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


def weighted(losses: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Losses times weights, and the weights, both float32 and shaped like the losses."""
    weights = batch["weights"] if "weights" in batch else jnp.ones(losses.shape)
    if weights.shape != losses.shape:
        raise UserError(
            f"the loss has shape {losses.shape} but batch['weights'] has {weights.shape}: "
            "return one loss for each weight, neither summed nor averaged."
        )
    weights = weights.astype(jnp.float32)
    return losses.astype(jnp.float32) * weights, weights


def check_loss(loss: Loss, output: Any, batch: Batch) -> None:
    """Raises a UserError unless `loss` keeps the examples apart."""
    losses = jax.eval_shape(loss, output, batch)
    size = next(iter(batch.values())).shape[0]
    if losses.ndim < 1 or losses.shape[0] != size:
        raise UserError(
            f"the loss returned shape {losses.shape} for a batch of {size} examples: return one "
            "loss for each example, [B] or [B, ...]; the framework averages."
        )
