"""The body of the train step: loss and gradients of one batch under any layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from hybrid_jax.config.depth import num_places
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.models.contract import Model
from hybrid_jax.pipeline.executor import execute
from hybrid_jax.pipeline.schedules import Schedule
from hybrid_jax.pipeline.stage_worker import Inputs
from hybrid_jax.sharding.constrain import MANUAL_AXES, manual_part
from hybrid_jax.sharding.order import depend_on, depend_smallest_on
from hybrid_jax.sharding.rules import BATCH_AXES, AxisRules
from hybrid_jax.train import zero
from hybrid_jax.train.objective import Objective
from hybrid_jax.train.padding import zero_padding
from hybrid_jax.train.stage_program import make_program

PyTree = Any

BATCH_SPEC = PartitionSpec(BATCH_AXES)
COMPUTE_DTYPES = {"bf16": jnp.bfloat16, "fp16": jnp.float16, "f32": jnp.float32}
# GPUs and TPUs round f32 matmul inputs to TF32 or bf16 unless told not to.
MATMUL_PRECISION = {"bf16": "default", "fp16": "default", "f32": "highest"}


def make_loss_and_gradients(
    model: Model,
    schedule: Schedule,
    strategy: Strategy,
    rules: AxisRules,
    placements: PyTree,
    mesh: Mesh,
    *,
    dropout: bool = True,
    bubble_value: float = 0.0,
) -> Callable:
    """Returns `f(params, batch, key_data, loss_scale) -> (grads, metrics, sums)`, one `shard_map`.

    Manual over every mesh axis but `model`, so that every byte that crosses them is written in
    this file and in the ones it calls. Gradients are f32 and lie as the parameters lie. Metrics
    are those of `Objective.metrics` and `grad_norm`; `sums` the global (sum, weight) pairs behind
    them. With a schedule that has no backward slots `grads` is empty. In fp16 the backward pass
    starts from `loss_scale`, which is divided out again in f32.

    Args:
      placements: tree of `Placement` for params {"embed", "blocks", "head"}, blocks in stage order,
        padded where stages x chunks do not divide the depth.
    """
    platform = mesh.devices.flat[0].platform
    # Only ZeRO-3 has collectives of one kind inside the loops over layers and beside them.
    ordered = platform == "cpu" and strategy.zero == 3
    trains = schedule.name != "forward_only"
    scaled = strategy.precision == "fp16"
    parts = schedule.stages * schedule.chunks
    padded = num_places(model.num_layers, parts) > model.num_layers
    shared_placements, block_placements = split_params(placements)
    program = make_program(model, strategy, rules, block_placements, mesh, dropout=dropout)
    objective = Objective(model, mesh)

    def body(params, batch, key_data, loss_scale):
        shared, blocks = split_params(_compute_copy(params, strategy, placements))
        if ordered:
            blocks = depend_smallest_on(blocks, shared)
        weights = objective.local_weights(batch)
        cotangents = objective.cotangents(weights, loss_scale if scaled else None)
        inputs = Inputs(
            shared,
            _split_leading(blocks, schedule.chunks),
            _microbatches(batch, schedule.microbatches),
            key_data,
            cotangents,
        )
        with jax.default_matmul_precision(MATMUL_PRECISION[strategy.precision]):
            totals = execute(
                schedule,
                program,
                inputs,
                skip_bubbles=strategy.skips_bubbles(platform),
                ordered=ordered,
                bubble_value=bubble_value,
            )
        if ordered and trains:
            outside = totals._replace(block_grads=())
            waiting = depend_on(outside, totals.block_grads)
            totals = waiting._replace(block_grads=totals.block_grads)
        # With one microbatch the sums are conversions, which XLA:TPU moves behind the reductions.
        totals = jax.tree.map(lax.optimization_barrier, totals)
        sums = objective.reduce(totals.sums, weights)
        metrics = objective.metrics(sums)
        if not trains:
            return {}, metrics, sums
        block_grads = totals.block_grads
        if padded:
            block_grads = zero_padding(block_grads, model.num_layers, schedule.stages)
        block_grads = _merge_leading(block_grads)
        shared_grads = zero.reduce_scatter(totals.shared_grads, shared_placements)
        if strategy.zero != 3:
            block_grads = zero.reduce_scatter(block_grads, block_placements, root="blocks")
        grads = zero.sum_over_copies({**shared_grads, "blocks": block_grads}, placements, mesh)
        factor = objective.gradient_factor(sums)
        grads = jax.tree.map(lambda g: g * (factor / loss_scale if scaled else factor), grads)
        return grads, {**metrics, "grad_norm": zero.global_norm(grads, placements, mesh)}, sums

    specs = jax.tree.map(lambda placement: manual_part(placement.spec), placements)
    # A `model` axis of one device has nothing to leave to the compiler, and kernels that it cannot
    # partition (Pallas, cuDNN) then need no wrapper.
    manual = mesh.axis_names if mesh.shape["model"] == 1 else MANUAL_AXES
    return jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(specs, BATCH_SPEC, PartitionSpec(), PartitionSpec()),
        out_specs=(specs if trains else {}, PartitionSpec(), PartitionSpec()),
        axis_names=set(manual),
        check_vma=False,
    )


def split_params(params: PyTree) -> tuple[PyTree, PyTree]:
    """Splits {"embed", "blocks", "head"} into (shared, blocks)."""
    shared = {name: part for name, part in params.items() if name != "blocks"}
    return shared, params["blocks"]


def _compute_copy(params: PyTree, strategy: Strategy, placements: PyTree) -> PyTree:
    """Parameters as the layers read them: compute dtype, gathered once unless ZeRO-3 does it."""
    dtype = COMPUTE_DTYPES[strategy.precision]
    params = jax.tree.map(lambda param: param.astype(dtype), params)
    (shared, blocks), (shared_placements, block_placements) = map(
        split_params, (params, placements)
    )
    shared = zero.gather(shared, shared_placements)
    if strategy.zero != 3:
        blocks = zero.gather(blocks, block_placements, root="blocks")
    return {**shared, "blocks": blocks}


def _microbatches(batch: PyTree, count: int) -> PyTree:
    """Local batch [B, ...] → [M, b, ...], with the global index of every example."""
    size = jax.tree.leaves(batch)[0].shape[0]
    first = lax.axis_index(BATCH_AXES) * size
    return _split_leading({**batch, "example": first + jnp.arange(size, dtype=jnp.int32)}, count)


def _split_leading(tree: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), tree)


def _merge_leading(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
