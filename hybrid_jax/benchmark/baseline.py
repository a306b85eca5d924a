"""The train step as one writes it by hand for one device: what every layout is measured against.

It knows the model's functions, JAX and optax, and nothing of the pipeline or of the train step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

from hybrid_jax.models.context import ONE_DEVICE, Context
from hybrid_jax.models.contract import Batch, Model

PyTree = Any
State = tuple[jax.Array, PyTree, PyTree]  # step, params, opt_state


def make_plain_step(
    model: Model,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    remat: Literal["none", "dots", "layer", "stage"] = "layer",
    precision: Literal["bf16", "fp16", "f32"] = "bf16",
    clip_norm: float | None = None,
    seed: int = 0,
) -> tuple[Callable[[jax.Array], State], Callable[[State, Batch], tuple[State, dict]]]:
    """Returns jitted (init, step) on one device; the state is donated.

    A scan over layers, `jax.checkpoint` as `remat` says, `jax.value_and_grad`, optax. With more
    than one microbatch, gradients are accumulated in f32 by a scan over them. From the same key,
    batch and seed it computes what `make_train_step` computes.

    Args:
      microbatches: equal slices of the batch, run one after the other.
      remat: what the backward pass computes again; "stage" is the whole stack of layers.
      precision: of the compute; parameters, gradients and optimizer are f32. In fp16 it is
        the sum of the losses that is differentiated: gradients of their mean are too small for it.
      clip_norm: gradients are scaled down to this global norm; None for no clipping.
      seed: of dropout.
    """
    loss_and_gradients = jax.value_and_grad(_make_loss(model, remat, precision))

    def init(key: jax.Array) -> State:
        params = model.init(key)
        return jnp.int32(0), params, tx.init(params)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        count, params, opt_state = state
        key = jax.random.fold_in(jax.random.key(seed), count)
        weights = {name: jnp.sum(weight) for name, weight in model.weights(batch).items()}
        weight = weights["loss"]
        divisors = {name: weights[name] for name in model.losses}
        if precision == "fp16":
            divisors = {name: divisor / weight for name, divisor in divisors.items()}
        size = len(next(iter(batch.values())))
        batch = {**batch, "example": jnp.arange(size, dtype=jnp.int32)}

        def accumulate(total, microbatch):
            part = loss_and_gradients(params, microbatch, divisors, key)
            return jax.tree.map(jnp.add, total, part), None

        if microbatches == 1:
            loss, grads = loss_and_gradients(params, batch, divisors, key)
        else:
            slices = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)
            zero = jax.tree.map(jnp.zeros_like, (weight, params))
            (loss, grads), _ = lax.scan(accumulate, zero, slices)
        if precision == "fp16":
            loss, grads = jax.tree.map(lambda total: total / weight, (loss, grads))
        grad_norm = optax.tree.norm(grads)
        if clip_norm is not None:
            scale = jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-12))
            grads = jax.tree.map(lambda grad: grad * scale, grads)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        metrics = {"loss": loss, "weight": weight, "grad_norm": grad_norm}
        return (count + 1, params, opt_state), metrics

    return jax.jit(init), jax.jit(step, donate_argnums=0)


def _make_loss(model: Model, remat: str, precision: str) -> Callable[..., jax.Array]:
    """(params, batch, divisors, key) -> what is trained on, of this batch."""
    dtype = {"bf16": jnp.bfloat16, "fp16": jnp.float16, "f32": jnp.float32}[precision]
    matmul_precision = "highest" if precision == "f32" else "default"

    def block(layer_params, x, batch, key):
        return model.layer(layer_params, x, batch, Context(key))

    # No barriers against common subexpressions: a scan's body cannot merge with its backward's.
    if remat == "layer":
        block = jax.checkpoint(block, prevent_cse=False)
    elif remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        block = jax.checkpoint(block, policy=policy, prevent_cse=False)

    def layers(blocks, x, batch, key):
        def layer(x, scanned):
            layer_params, index = scanned
            return block(layer_params, x, batch, jax.random.fold_in(key, index)), None

        return lax.scan(layer, x, (blocks, jnp.arange(model.num_layers)))[0]

    if remat == "stage":
        layers = jax.checkpoint(layers)

    def loss(params, batch, divisors, key):
        params = jax.tree.map(lambda param: param.astype(dtype), params)
        embed_key = jax.random.fold_in(key, model.num_layers)
        with jax.default_matmul_precision(matmul_precision):
            x = model.embed(params, batch, Context(embed_key))
            x = layers(params["blocks"], x, batch, key)
            sums = model.head(params, x, batch, ONE_DEVICE)
        terms = [factor * sums[name] / divisors[name] for name, factor in model.losses.items()]
        return sum(terms, jnp.float32(0))

    return loss
