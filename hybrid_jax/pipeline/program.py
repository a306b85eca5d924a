"""A model cut for the pipeline: embed, a chunk of layers, head; and what is rematerialised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_jax.pipeline.head_split import BatchAxes

PyTree = Any
Remat = Literal["none", "dots", "layer", "stage"]


@dataclass(frozen=True)
class StageProgram:
    """The pure functions that the executor schedules; all arrays are one device's share.

    Attributes:
      embed: (shared_params, microbatch, key_data) -> carry, leaves [b, T', ...].
      chunk: (chunk_params [Lc, ...], carry, microbatch, layer_ids [Lc], key_data) -> carry.
      head: (shared_params, carry, microbatch) -> {name: sum over the tokens it is given}.
      head_dims: the dims of the carry that the head may be split along, of ("batch", "length").
      batch_axes: logical names of the dims of every entry of a microbatch.
    """

    embed: Callable[..., PyTree]
    chunk: Callable[..., PyTree]
    head: Callable[..., dict[str, jax.Array]]
    head_dims: tuple[str, ...]
    batch_axes: BatchAxes


def layer_ids(chunk: Any, stage: Any, stages: int, per_chunk: int) -> jax.Array:
    """Returns the depths of a chunk's layers, [per_chunk].

    Chunk c of stage d is the (c S + d)-th group of layers in depth.

    >>> layer_ids(chunk=1, stage=0, stages=2, per_chunk=3).tolist()
    [6, 7, 8]
    """
    return (chunk * stages + stage) * per_chunk + jnp.arange(per_chunk)


def make_chunk(
    layer: Callable[..., PyTree],
    remat: Remat,
    around_layer: Callable[[Callable], Callable] = lambda layer: layer,
) -> Callable[..., PyTree]:
    """Returns the function that runs consecutive layers, one `lax.scan` over their parameters.

    Args:
      layer: (layer_params, carry, microbatch, layer_id, key_data) -> carry.
      remat: which residuals the backward pass recomputes instead of storing:
        "none" stores all; "dots" keeps matmul outputs; "layer" keeps each layer's input;
        "stage" keeps the chunk's input only.
      around_layer: wraps the layer after rematerialisation (ZeRO-3 gathers parameters there).
    """
    # Inside a scan XLA cannot merge the recomputation with the original, so the barriers that
    # `prevent_cse` inserts would only cost time.
    if remat == "dots":
        layer = jax.checkpoint(layer, policy=_save_matmuls(), prevent_cse=False)
    elif remat == "layer":
        layer = jax.checkpoint(layer, prevent_cse=False)

    layer = around_layer(layer)

    def chunk(params, carry, microbatch, layer_ids, key_data):
        def next_layer(carry, scanned):
            layer_params, layer_id = scanned
            return layer(layer_params, carry, microbatch, layer_id, key_data), None

        return lax.scan(next_layer, carry, (params, layer_ids))[0]

    return jax.checkpoint(chunk) if remat == "stage" else chunk


def _save_matmuls() -> Callable:
    """Keeps matmul outputs; a model names those "matmul" that a custom vjp hides from policies."""
    policies = jax.checkpoint_policies
    return policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("matmul")
    )
