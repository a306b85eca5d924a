"""A model cut for the pipeline: embed, a chunk of layers, head; and what is rematerialised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax import lax

PyTree = Any
Remat = Literal["none", "dots", "layer", "stage"]


@dataclass(frozen=True)
class StageProgram:
    """The pure functions that the executor schedules; all arrays are one device's share.

    Attributes:
      embed: (outer, microbatch, key_data) -> x [b, T, D].
      chunk: (chunk_params [Lc, ...], x, microbatch, layer_ids [Lc], key_data) -> y like x.
      head: (outer, x, microbatch) -> (loss_sum, weight_sum), over the tokens it is given.
      head_dims: the dims of x that the head may be split along, of ("batch", "length").
    """

    embed: Callable[..., jax.Array]
    chunk: Callable[..., jax.Array]
    head: Callable[..., tuple[jax.Array, jax.Array]]
    head_dims: tuple[str, ...]


def make_chunk(
    block: Callable[..., jax.Array],
    remat: Remat,
    around_layer: Callable[[Callable], Callable] = lambda block: block,
) -> Callable[..., jax.Array]:
    """Returns the function that runs consecutive layers, one `lax.scan` over their parameters.

    Args:
      block: (layer_params, x, microbatch, layer_id, key_data) -> x, one layer.
      remat: which residuals the backward pass recomputes instead of storing:
        "none" stores all; "dots" keeps matmul outputs; "layer" keeps each layer's input;
        "stage" keeps the chunk's input only.
      around_layer: wraps the block after rematerialisation (ZeRO-3 gathers parameters there).
    """
    # Inside a scan XLA cannot merge the recomputation with the original, so the barriers that
    # `prevent_cse` inserts would only cost time.
    if remat == "dots":
        block = jax.checkpoint(block, policy=_save_matmuls(), prevent_cse=False)
    elif remat == "layer":
        block = jax.checkpoint(block, prevent_cse=False)

    block = around_layer(block)

    def chunk(params, x, microbatch, layer_ids, key_data):
        def layer(x, scanned):
            layer_params, layer_id = scanned
            return block(layer_params, x, microbatch, layer_id, key_data), None

        return lax.scan(layer, x, (params, layer_ids))[0]

    return jax.checkpoint(chunk) if remat == "stage" else chunk


def _save_matmuls() -> Callable:
    """Keeps matmul outputs; a model names those "matmul" that a custom vjp hides from policies."""
    policies = jax.checkpoint_policies
    return policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("matmul")
    )
