"""The functions of a train step, jitted; nothing here is checked, see `TrainStep`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_jax.train.guard import should_update
from hybrid_jax.train.stage_order import LayerOrder, layer_dims
from hybrid_jax.train.state import DEPTH_ORDER, TrainState

PyTree = Any


@dataclass(frozen=True)
class StepFunctions:
    """What runs on the devices.

    Attributes:
      init: key -> state.
      init_from: canonical params -> state; donated.
      step: (state, batch) -> (state, metrics); the state is donated.
      evaluate: (params, batch) -> (metrics, sums).
      gradients: (canonical params, batch, step, loss_scale) -> (canonical gradients, metrics).
      canonical_params: params -> canonical params.
      to_depth: state -> state in depth order.
      to_stages: state in depth order -> state; donated.
    """

    init: Callable
    init_from: Callable
    step: Callable
    evaluate: Callable
    gradients: Callable
    canonical_params: Callable
    to_depth: Callable
    to_stages: Callable


def make_functions(
    init_params: Callable,
    train: Callable,
    evaluate: Callable,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    shapes: PyTree,
    shardings: TrainState,
    *,
    chunks: int,
    seed: int,
    clip_norm: float | None,
    spike_sigmas: float | None,
    scaled: bool,
) -> StepFunctions:
    """Returns the jitted functions around a loss and its gradients.

    Args:
      init_params: key -> canonical parameters.
      train, evaluate: from `make_loss_and_gradients`, with and without a backward pass.
      shapes: of the parameters.
      shardings: of the state; its `order` is that of the layers.
      chunks, seed, clip_norm, spike_sigmas: as of `make_train_step` and the strategy.
      scaled: whether the loss scale of fp16 is in use.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    def fresh(params):
        return TrainState(jnp.int32(0), params, tx.init(params), order=shardings.order)

    dims = layer_dims(fresh, shapes)
    order = LayerOrder(mesh, chunks, dims, shardings)
    params_order = LayerOrder(mesh, chunks, dims.params, shardings.params)

    def from_depth(params):
        params = jax.lax.with_sharding_constraint(params, shardings.params)
        return params_order.to_stages(params)

    def step_key(step):
        return jax.random.key_data(jax.random.fold_in(jax.random.key(seed), step))

    def step(state, batch):
        scale = state.guard.loss_scale
        grads, metrics, _ = train(state.params, batch, step_key(state.step), scale)
        good, guard = should_update(state.guard, metrics, scaled=scaled, spike_sigmas=spike_sigmas)
        if clip_norm is not None:
            grads = _clip(grads, metrics["grad_norm"], clip_norm)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        # Selects fuse with the update's own loops and leave every buffer to be reused in place.
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        metrics |= {"skipped": guard.skipped, "skipped_in_a_row": guard.skipped_in_a_row}
        if scaled:
            metrics["loss_scale"] = scale
        return TrainState(state.step + 1, params, opt_state, guard, shardings.order), metrics

    def gradients(params, batch, step, loss_scale):
        grads, metrics, _ = train(from_depth(params), batch, step_key(step), loss_scale)
        return params_order.to_depth(grads), metrics

    def moved(move, out_shardings, **options):
        if order.is_trivial:
            return lambda state: state
        return jax.jit(move, out_shardings=out_shardings, **options)

    return StepFunctions(
        init=jax.jit(lambda key: fresh(from_depth(init_params(key))), out_shardings=shardings),
        init_from=jax.jit(
            lambda params: fresh(from_depth(params)), out_shardings=shardings, donate_argnums=0
        ),
        step=jax.jit(step, out_shardings=(shardings, whole), donate_argnums=0),
        evaluate=jax.jit(
            lambda params, batch: evaluate(params, batch, step_key(0), jnp.float32(1))[1:],
            out_shardings=whole,
        ),
        gradients=jax.jit(gradients, out_shardings=(shardings.params, whole)),
        canonical_params=jax.jit(params_order.to_depth, out_shardings=shardings.params),
        to_depth=moved(
            lambda state: replace(order.to_depth(state), order=DEPTH_ORDER),
            replace(shardings, order=DEPTH_ORDER),
        ),
        to_stages=moved(
            lambda state: order.to_stages(replace(state, order=shardings.order)),
            shardings,
            donate_argnums=0,
        ),
    )


def _clip(grads: PyTree, norm: jax.Array, clip_norm: float) -> PyTree:
    """Scales gradients of global norm `norm` down to `clip_norm`, if they are larger."""
    scale = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda grad: grad * scale, grads)
