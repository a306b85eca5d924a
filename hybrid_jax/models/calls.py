"""How a user's Flax module and loss are called on a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from hybrid_jax.errors import UserError, nearest
from hybrid_jax.models.contract import Batch, Params
from hybrid_jax.models.entries import BatchEntries, example_entries
from hybrid_jax.models.functional import Functional
from hybrid_jax.models.linen_module import from_linen
from hybrid_jax.models.nnx_module import from_nnx
from hybrid_jax.models.switches import Switches

FlaxModule = linen.Module | Callable[[nnx.Rngs], nnx.Module]
Loss = Callable[[Any, Batch], jax.Array]


def functional(
    module: FlaxModule,
    *example_args: Any,
    switches: Switches | None = None,
    constants: Sequence[type[nnx.Variable]] = (),
) -> Functional:
    """The module, Linen or NNX, as pure functions; see `from_flax`."""
    if isinstance(module, linen.Module):
        return from_linen(module, *example_args, switches=switches)
    name = getattr(module, "__name__", type(module).__name__)
    if isinstance(module, nnx.Module):
        raise UserError(
            f"{name} is already built: pass the function that builds it, "
            f"`lambda rngs: {name}(..., rngs=rngs)`, so that its parameters can be born sharded."
        )
    if not callable(module) or (isinstance(module, type) and issubclass(module, linen.Module)):
        what = f"the class {name}" if callable(module) else repr(module)
        raise UserError(
            f"{what} is not a module: pass a Linen module, or a function of nnx.Rngs that builds "
            "an NNX module."
        )
    return from_nnx(module, *example_args, switches=switches, constants=constants)


def arguments(batch: Batch, names: Sequence[str]) -> list[Any]:
    """The named entries of a batch, in order."""
    for name in names:
        if name not in batch:
            raise UserError(
                f"input {name!r} is not in the batch, which has {', '.join(batch)}."
                f"{nearest(name, batch)}"
            )
    return [batch[name] for name in names]


def check_example(batch: Batch, **names: Sequence[str]) -> None:
    """Raises a UserError unless `batch` holds arrays [B, ...] and `names` are lists of names."""
    if not isinstance(batch, Mapping) or not batch:
        raise UserError(
            f"example_batch={batch!r} must be a dict of arrays [B, ...], or of their shapes."
        )
    sizes = {}
    for name, leaf in batch.items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype") or not leaf.shape:
            what = "a scalar" if hasattr(leaf, "shape") else f"a {type(leaf).__name__}"
            raise UserError(f"example_batch[{name!r}] is {what}, but must be an array [B, ...].")
        if 0 in leaf.shape:
            raise UserError(f"example_batch[{name!r}] is empty, {leaf.shape}: give an example.")
        sizes[name] = leaf.shape[0]
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"example_batch has unequal numbers of examples, {sizes}: every entry must be [B, ...]."
        )
    for argument, value in names.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{argument}={value!r} must be a list of names, e.g. [{value!r}].")


def output_shapes(part: Functional, *args: Any, training: bool = False) -> Any:
    """Shapes of what a module returns for a batch.

    Raises:
      UserError: it draws random numbers and returns what is not [B, ...], so that they cannot be
        drawn for each example apart.
    """
    key = jax.random.key(0) if training else None
    batch = {"example": jnp.arange(args[0].shape[0], dtype=jnp.int32)}

    call = lambda params, *args: apply_examples(part, params, args, batch, key)
    return jax.eval_shape(call, jax.eval_shape(part.init, jax.random.key(0)), *args)


def apply_examples(
    part: Functional, params: Params, args: Sequence[Any], batch: Batch, key: jax.Array | None
) -> Any:
    """Calls a module; if it is random, for each example apart (vmapped), with a key of its own."""
    if key is None or not part.stochastic:
        return part.apply(params, *args, key=key)

    def one(example, args):
        example_key = jax.random.fold_in(key, example)
        output = part.apply(params, *(arg[None] for arg in args), key=example_key)
        for leaf in jax.tree.leaves(output):
            if leaf.shape[:1] != (1,):
                raise UserError(
                    f"{part.name} returns shape {leaf.shape} for one example: where a module "
                    "draws random numbers each example is computed apart, so that everything it "
                    "returns must be [B, ...]."
                )
        return jax.tree.map(lambda x: x[0], output)

    return jax.vmap(one)(batch["example"], list(args))


def weights_of(batch: Batch, losses: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """Returns the weights of a batch, or ones, float32 and in the shape of the losses.

    Weights [B] count for all that belongs to an example.
    """
    weights = batch["weights"] if "weights" in batch else jnp.ones(losses.shape)
    if weights.ndim == 1 and weights.shape == losses.shape[:1]:
        columns = weights.reshape(-1, *[1] * (len(losses.shape) - 1))
        weights = jnp.broadcast_to(columns, losses.shape)
    if weights.shape != losses.shape:
        raise UserError(
            f"the loss has shape {losses.shape} but batch['weights'] has {weights.shape}: "
            "return one loss for each weight, neither summed nor averaged."
        )
    return weights.astype(jnp.float32)


def weighted(losses: jax.Array, batch: Batch) -> jax.Array:
    """Returns the losses times their weights, float32."""
    return losses.astype(jnp.float32) * weights_of(batch, losses)


def loss_shape(loss: Loss, output: Any, batch: Batch) -> tuple[int, ...]:
    """Returns the shape of the losses, [B] or [B, ...].

    Raises:
      UserError: `loss` returns anything else than one array of floats that keeps examples apart.
    """
    if not callable(loss):
        raise UserError(f"loss={loss!r} must be a function of (output, batch).")
    remedy = "return one loss for each example, [B] or [B, ...]; the framework averages"

    def call(output: Any, batch: Batch) -> Any:
        losses = loss(output, batch)
        if not isinstance(losses, jax.Array):
            raise UserError(f"the loss returned a {type(losses).__name__}, not an array: {remedy}.")
        return losses

    losses = jax.eval_shape(call, output, dict(batch))
    size = next(iter(batch.values())).shape[0]
    if losses.ndim < 1 or losses.shape[0] != size:
        raise UserError(
            f"the loss returned shape {losses.shape} for a batch of {size} examples: {remedy}."
        )
    if 0 in losses.shape:
        raise UserError(f"the loss returned an empty array, shape {losses.shape}: {remedy}.")
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise UserError(
            f"the loss returned {losses.dtype}, which has no gradient: return floats, such as "
            "losses.astype(jnp.float32)."
        )
    jax.eval_shape(weighted, losses, dict(batch))
    return losses.shape


def entries_of(example_batch: Batch, loss_rank: int, length: int | None = None) -> BatchEntries:
    """Returns what a batch must hold: what the example has, but for the examples' numbers."""
    given = {name: leaf for name, leaf in example_batch.items() if name != "example"}
    return example_entries(given, loss_rank, length)


def describe(shapes: Any) -> str:
    """Shapes and dtypes in a few words."""
    words = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", shapes)
    return str(words).replace("'", "")
