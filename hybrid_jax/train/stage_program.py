"""A model cut for the executor: its parts, each with the context that it is called in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hybrid_jax.config.depth import num_places
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.models.attention import Attend, dot_product_attention
from hybrid_jax.models.context import Context
from hybrid_jax.models.contract import Model
from hybrid_jax.pipeline.program import StageProgram, make_chunk
from hybrid_jax.sharding.constrain import make_constrain
from hybrid_jax.sharding.rules import AxisRules
from hybrid_jax.train import zero
from hybrid_jax.train.padding import skip_padding

PyTree = Any


def make_program(
    model: Model,
    strategy: Strategy,
    rules: AxisRules,
    block_placements: PyTree,
    mesh: Mesh,
    *,
    dropout: bool,
) -> StageProgram:
    """Cuts `model` for the executor; keys are a function of (step key, layer) alone."""
    constrain, attend = make_constrain(rules, mesh), make_attend(mesh)

    def context(key_data, layer_id, layer=None) -> Context:
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), layer_id) if dropout else None
        return Context(key, layer, constrain, attend)

    def embed(shared, microbatch, key_data):
        with jax.named_scope("embed"):
            carry = model.embed(shared, microbatch, context(key_data, model.num_layers))
        return _checked_carry(carry, "embed")

    def layer(params, carry, microbatch, layer_id, key_data):
        with jax.named_scope("blocks"):
            return model.layer(params, carry, microbatch, context(key_data, layer_id, layer_id))

    def head(shared, carry, microbatch):
        with jax.named_scope("head"):
            sums = model.head(shared, carry, microbatch, Context(None, None, constrain, attend))
        return _checked_sums(sums, model)

    if num_places(model.num_layers, strategy.stage * strategy.chunks) > model.num_layers:
        layer = skip_padding(layer, model.num_layers)
    around = zero.gather_per_layer(block_placements) if strategy.zero == 3 else lambda layer: layer
    chunk = make_chunk(layer, strategy.remat, around)
    batch_axes = {name: entry.axes for name, entry in model.batch_entries().entries.items()}
    return StageProgram(embed, chunk, head, model.head_dims, {**batch_axes, "example": ("batch",)})


def make_attend(mesh: Mesh) -> Attend:
    """Returns attention for use in the step: with the kernels of the mesh, heads over `model`."""
    platform = mesh.devices.flat[0].platform
    heads_axis = "model" if mesh.shape["model"] > 1 else None

    def attend(q, k, v, **options):
        return dot_product_attention(q, k, v, platform=platform, heads_axis=heads_axis, **options)

    return attend


def _checked_carry(carry: PyTree, part: str) -> PyTree:
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.ndim < 2:
            where = jax.tree_util.keystr(path)
            raise UserError(
                f"{part} returns a carry with {leaf.dtype}{list(leaf.shape)}{where and ' at '}"
                f"{where}: every array must be floats [B, T, ...]; take integers from the batch."
            )
    return carry


def _checked_sums(sums: dict[str, jax.Array], model: Model) -> dict[str, jax.Array]:
    missing = [name for name in model.losses if name not in sums]
    if missing:
        raise UserError(
            f"head returns no sum {missing[0]!r}, which is in losses: it returns {list(sums)}."
        )
    for name in model.losses:
        if sums[name].shape:
            raise UserError(
                f"head returns {name!r} of shape {list(sums[name].shape)}: what is trained on is a "
                "scalar; add it up."
            )
    return {name: value.astype(jnp.float32) for name, value in sums.items()}
