"""The hand-written communication of data parallelism: gather parameters, reduce gradients.

ZeRO, Rajbhandari et al. 2020 (arXiv:1910.02054). Level 1: parameters and optimizer state are split
over `data`; parameters are gathered once per step and gradients reduce-scattered once per step.
Level 3: block parameters are gathered layer by layer, again in the backward pass, and their
gradients are reduce-scattered there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from hybrid_jax.pipeline.ring import plan_residuals
from hybrid_jax.sharding.constrain import MANUAL_AXES, automatic_part, entry_axes
from hybrid_jax.sharding.placement import Placement, path_name

PyTree = Any


def gather(shards: PyTree, placements: PyTree, *, first_dim: int = 0, root: str = "") -> PyTree:
    """Puts parameters together over their ZeRO axes.

    Args:
      shards: this device's parameters.
      placements: their placements, of the stored arrays.
      first_dim: how many leading dims of the stored arrays are already taken away.
      root: path of `shards` in the tree of all parameters; it names the collectives.
    """

    def gather_leaf(shard, placement):
        # Innermost axis first. Over two axes at once XLA:TPU gathers on closed tori of three dims;
        # on 64 and more chips of v5e or v6e it makes an all-reduce, of twice the bytes.
        for axis in reversed(placement.zero_axes):
            shard = lax.all_gather(shard, axis, axis=placement.zero_dim - first_dim, tiled=True)
        return shard

    names = f"parameter/{root}"
    return _on_model_shards(gather_leaf, shards, placements, first_dim, names=names)


def reduce_scatter(
    grads: PyTree, placements: PyTree, *, first_dim: int = 0, root: str = ""
) -> PyTree:
    """Sums gradients over their ZeRO axes, keeping this device's shard; f32 on the wire.

    Args:
      first_dim, root: as for `gather`.
    """

    def reduce_leaf(grad, placement):
        if not placement.zero_axes:
            return grad
        dim = placement.zero_dim - first_dim
        before, after = grad.shape[: dim + 1], grad.shape[dim + 1 :]
        # XLA:TPU scatters only the last two dims of an array: of any other it makes an all-reduce,
        # on closed tori too.
        total = grad.reshape(*before, -1) if len(after) > 1 else grad
        total = total.astype(jnp.float32)
        if total.ndim == 1:
            # Vectors it reduces whole, and would convert behind the reduction, sending bf16.
            total = lax.optimization_barrier(total)
        for axis in placement.zero_axes:
            total = lax.psum_scatter(total, axis, scatter_dimension=dim, tiled=True)
        return total.reshape(*total.shape[: dim + 1], *after).astype(grad.dtype)

    names = f"gradient/{root}"
    return _on_model_shards(reduce_leaf, grads, placements, first_dim, names=names)


def sum_over_copies(grads: PyTree, placements: PyTree, mesh: Mesh) -> PyTree:
    """Sums gradients over the manual axes that hold copies of their parameter."""

    def sum_leaf(grad, placement):
        axes = copy_axes(placement, mesh)
        return lax.psum(grad, axes) if axes else grad

    return _on_model_shards(sum_leaf, grads, placements, names="gradient")


def _on_model_shards(
    leaf_function: Callable, tree: PyTree, placements: PyTree, first_dim: int = 0, *, names: str
) -> PyTree:
    """Maps `leaf_function(leaf, placement)` over `tree`, on each `model` shard by itself.

    In the compiled program the collectives of a leaf are called `names` and the leaf's path.

    A collective over a manual axis would make XLA gather its operand over the automatic `model`
    axis first, and then send every byte `model` times: so `model` is manual in here too.
    """

    def named(path, leaf, placement):
        with jax.named_scope(names), jax.named_scope(path_name(path)):
            return leaf_function(leaf, placement)

    run = lambda tree: jax.tree_util.tree_map_with_path(named, tree, placements)
    if jax.sharding.get_abstract_mesh().shape["model"] == 1:
        return run(tree)

    def model_spec(placement):
        return PartitionSpec(*automatic_part(placement.spec)[first_dim:])

    specs = jax.tree.map(model_spec, placements)
    return jax.shard_map(
        run, in_specs=(specs,), out_specs=specs, axis_names={"model"}, check_vma=False
    )(tree)


def global_norm(grads: PyTree, placements: PyTree, mesh: Mesh) -> jax.Array:
    """The norm of all gradients together, every element counted once; one scalar reduction."""

    def square(grad, placement):
        copies = [mesh.shape[axis] for axis in copy_axes(placement, mesh)]
        total = jnp.sum(jnp.square(grad))
        for size in copies:
            total = total / size
        return total

    with jax.named_scope("grad_norm"):
        squares = jax.tree.leaves(jax.tree.map(square, grads, placements))
        return jnp.sqrt(psum(sum(squares), MANUAL_AXES, mesh))


def psum(x: PyTree, axes: tuple[str, ...], mesh: Mesh) -> PyTree:
    """`lax.psum` over those of `axes` that have more than one device."""
    axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
    return lax.psum(x, axes) if axes else x


def copy_axes(placement: Placement, mesh: Mesh) -> tuple[str, ...]:
    """The manual axes of more than one device along which a parameter is repeated."""
    split = {axis for entry in placement.spec for axis in entry_axes(entry)}
    return tuple(a for a in MANUAL_AXES if mesh.shape[a] > 1 and a not in split)


def gather_per_layer(placements: PyTree) -> Callable[[Callable], Callable]:
    """Returns a wrapper that lets a layer run on parameter shards (ZeRO-3).

    The gathered parameters never become residuals: the backward pass gathers them again, and
    reduce-scatters their gradients.

    Args:
      placements: of the stacked block parameters [L, ...].
    """

    def gather_layer(shards):
        return gather(shards, placements, first_dim=1, root="blocks")

    def wrap(layer: Callable) -> Callable:
        def forward(recomputable, carry):
            params, *rest = recomputable
            return jax.vjp(lambda params, carry: layer(params, carry, *rest), params, carry)

        @jax.custom_vjp
        def sharded_layer(shards, carry, *rest):
            return layer(gather_layer(shards), carry, *rest)

        def sharded_forward(shards, carry, *rest):
            recomputable = (gather_layer(shards), *rest)
            y, vjp = forward(recomputable, carry)
            return y, (plan_residuals(forward, recomputable, carry).split(vjp), shards, rest)

        def sharded_backward(residuals, dy):
            stored, shards, rest = residuals
            recomputable = (gather_layer(shards), *rest)
            grads, dx = plan_residuals(forward, recomputable, dy).join(stored, recomputable)(dy)
            grads = reduce_scatter(grads, placements, first_dim=1, root="blocks")
            return grads, dx, *(None for _ in rest)

        sharded_layer.defvjp(sharded_forward, sharded_backward)
        return sharded_layer

    return wrap
