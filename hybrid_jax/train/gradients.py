"""The body of the train step: loss and gradients of one batch under any layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.models.contract import StagedModel
from hybrid_jax.pipeline.device import Inputs
from hybrid_jax.pipeline.executor import execute
from hybrid_jax.pipeline.program import StageProgram, make_chunk
from hybrid_jax.pipeline.schedules import Schedule
from hybrid_jax.sharding.constrain import MANUAL_AXES, Constrain, make_constrain, manual_part
from hybrid_jax.sharding.order import after, start_after
from hybrid_jax.sharding.rules import BATCH_AXES, AxisRules
from hybrid_jax.train import zero

PyTree = Any

BATCH_SPEC = PartitionSpec(BATCH_AXES)
COMPUTE_DTYPES = {"bf16": jnp.bfloat16, "fp16": jnp.float16, "f32": jnp.float32}
# GPUs and TPUs round f32 matmul inputs to TF32 or bf16 unless told not to.
MATMUL_PRECISION = {"bf16": "default", "fp16": "default", "f32": "highest"}


def make_program(
    model: StagedModel,
    strategy: Strategy,
    block_placements: PyTree,
    constrain: Constrain,
    *,
    dropout: bool,
) -> StageProgram:
    """Cuts `model` for the executor; layer keys are a function of (step key, layer) alone."""

    def layer_key(key_data, layer_id):
        return jax.random.fold_in(jax.random.wrap_key_data(key_data), layer_id) if dropout else None

    def embed(outer, microbatch, key_data):
        key = layer_key(key_data, model.num_layers)
        with jax.named_scope("embed"):
            return model.embed(outer, microbatch, key=key, constrain=constrain)

    def block(params, x, microbatch, layer_id, key_data):
        key = layer_key(key_data, layer_id)
        with jax.named_scope("blocks"):
            return model.block(params, x, microbatch, key=key, constrain=constrain)

    def head(outer, x, microbatch):
        with jax.named_scope("head"):
            return model.head(outer, x, microbatch, constrain=constrain)

    around = zero.gather_per_layer(block_placements) if strategy.zero == 3 else lambda block: block
    chunk = make_chunk(block, strategy.remat, around)
    return StageProgram(embed, chunk, head, model.head_dims)


def make_loss_and_gradients(
    model: StagedModel,
    schedule: Schedule,
    strategy: Strategy,
    rules: AxisRules,
    placements: PyTree,
    mesh: Mesh,
    *,
    dropout: bool = True,
    bubble_value: float = 0.0,
) -> Callable:
    """Returns `f(params, batch, key_data, loss_scale) -> (grads, metrics)`, one `shard_map`.

    Manual over every mesh axis but `model`, so that every byte that crosses them is written in
    this file and in the ones it calls. Gradients are those of the mean loss per weight, f32, and
    lie as the parameters lie; metrics are `loss`, `weight` and `grad_norm`. With a schedule that
    has no backward slots `grads` is empty. In fp16 the backward pass starts from `loss_scale`,
    which is divided out again in f32.

    Args:
      placements: tree of `Placement` for params {"embed", "blocks", "head"}, blocks in stage order.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    skip_bubbles = on_cpu if strategy.skip_bubbles is None else strategy.skip_bubbles
    # Only ZeRO-3 has collectives of one kind inside the loops over layers and beside them.
    ordered = on_cpu and strategy.zero == 3
    trains = schedule.name != "forward_only"
    outer_placements, block_placements = split_params(placements)
    constrain = make_constrain(rules, mesh)
    program = make_program(model, strategy, block_placements, constrain, dropout=dropout)

    scaled = strategy.precision == "fp16"

    def body(params, batch, key_data, loss_scale):
        outer, blocks = split_params(_compute_copy(params, strategy, placements))
        if ordered:
            blocks = start_after(blocks, outer)
        blocks = _split_leading(blocks, schedule.chunks)
        microbatches = _microbatches(batch, schedule.microbatches)
        inputs = Inputs(outer, blocks, microbatches, key_data, loss_scale if scaled else None)
        with jax.default_matmul_precision(MATMUL_PRECISION[strategy.precision]):
            totals = execute(
                schedule,
                program,
                inputs,
                skip_bubbles=skip_bubbles,
                ordered=ordered,
                bubble_value=bubble_value,
            )
        if ordered and trains:
            outside = totals._replace(block_grads=())
            totals = after(outside, totals.block_grads)._replace(block_grads=totals.block_grads)
        # With one microbatch the sums are conversions, which XLA:TPU moves behind the reductions.
        totals = jax.tree.map(lax.optimization_barrier, totals)
        with jax.named_scope("loss"):
            loss_sum, weight = zero.psum((totals.loss_sum, totals.weight_sum), MANUAL_AXES, mesh)
        per_weight = jnp.where(weight > 0, 1 / weight, 0)
        metrics = {"loss": loss_sum * per_weight, "weight": weight}
        if not trains:
            return {}, metrics
        block_grads = _merge_leading(totals.block_grads)
        outer_grads = zero.reduce_scatter(totals.outer_grads, outer_placements)
        if strategy.zero != 3:
            block_grads = zero.reduce_scatter(block_grads, block_placements, root="blocks")
        grads = zero.sum_over_copies({**outer_grads, "blocks": block_grads}, placements, mesh)
        factor = per_weight / loss_scale if scaled else per_weight
        grads = jax.tree.map(lambda grad: grad * factor, grads)
        return grads, {**metrics, "grad_norm": zero.global_norm(grads, placements, mesh)}

    specs = jax.tree.map(lambda placement: manual_part(placement.spec), placements)
    # A `model` axis of one device has nothing to leave to the compiler, and kernels that it cannot
    # partition (Pallas, cuDNN) then need no wrapper.
    manual = mesh.axis_names if mesh.shape["model"] == 1 else MANUAL_AXES
    return jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(specs, BATCH_SPEC, PartitionSpec(), PartitionSpec()),
        out_specs=(specs if trains else {}, PartitionSpec()),
        axis_names=set(manual),
        check_vma=False,
    )


def split_params(params: PyTree) -> tuple[PyTree, PyTree]:
    """Splits {"embed", "blocks", "head"} into (outer, blocks)."""
    outer = {name: part for name, part in params.items() if name != "blocks"}
    return outer, params["blocks"]


def _compute_copy(params: PyTree, strategy: Strategy, placements: PyTree) -> PyTree:
    """Parameters as the layers read them: compute dtype, gathered once unless ZeRO-3 does it."""
    dtype = COMPUTE_DTYPES[strategy.precision]
    params = jax.tree.map(lambda param: param.astype(dtype), params)
    (outer, blocks), (outer_placements, block_placements) = map(split_params, (params, placements))
    outer = zero.gather(outer, outer_placements)
    if strategy.zero != 3:
        blocks = zero.gather(blocks, block_placements, root="blocks")
    return {**outer, "blocks": blocks}


def _microbatches(batch: PyTree, count: int) -> PyTree:
    """Local batch [B, ...] → [M, b, ...], with the global index of every example."""
    size = jax.tree.leaves(batch)[0].shape[0]
    first = lax.axis_index(BATCH_AXES) * size
    return _split_leading({**batch, "example": first + jnp.arange(size, dtype=jnp.int32)}, count)


def _split_leading(tree: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), tree)


def _merge_leading(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
