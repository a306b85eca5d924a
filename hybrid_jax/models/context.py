"""What a model's parts are given besides parameters, activations and batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax

from hybrid_jax.errors import UserError
from hybrid_jax.models.attention import Attend, dot_product_attention

Axes = tuple[str | None, ...]
Constrain = Callable[[jax.Array, Axes], jax.Array]


def unconstrained(x: jax.Array, names: Axes) -> jax.Array:
    """The `constrain` of a single device: says nothing about where `x` lives."""
    check_names(x, names)
    return x


def check_names(x: jax.Array, names: Axes) -> None:
    """Raises a UserError unless there is one logical name, or None, for every dim of `x`."""
    if len(names) != x.ndim:
        raise UserError(
            f"constrain: {len(names)} logical names {names} for shape {x.shape}: give one (or "
            "None) for each dim."
        )


@dataclass(frozen=True)
class Context:
    """The surroundings of one call of a model's part; the train step makes it.

    What a model does not need to know, the mesh above all, stays behind these functions. The
    default is one device, without dropout.

    Attributes:
      key: of all that is random in this call, a function of (step, layer) alone; None: evaluation.
      layer: depth of the layer, int32 from 0; None outside of layers.
      constrain: (x, names) -> x, with one logical name for each dim of an activation: batch,
        length, norm_length (the length of the residual stream), act_embed, act_mlp, act_heads,
        act_kv_heads, act_vocab, or None.
      attend: attention with the best kernel of the devices that will run it; arguments as of
        `dot_product_attention`.
    """

    key: jax.Array | None = None
    layer: jax.Array | None = None
    constrain: Constrain = unconstrained
    attend: Attend = dot_product_attention


ONE_DEVICE = Context()
"""The context of a single device, without dropout."""
