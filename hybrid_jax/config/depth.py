"""How many places a layout has for the layers of a model; the last ones may stay empty."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError


def num_places(num_layers: int, parts: int) -> int:
    """Returns the smallest multiple of `parts` with room for all layers.

    >>> num_places(26, 4), num_places(26, 8), num_places(24, 4)
    (28, 32, 24)

    Args:
      parts: stages x chunks, each with as many places as every other.
    """
    return -(-num_layers // parts) * parts


def padded(config: DecoderConfig, strategy: Strategy) -> DecoderConfig:
    """Returns a model with a layer in every place: what each device holds and computes.

    >>> from hybrid_jax.config.model import preset
    >>> padded(preset("nano", num_layers=5), Strategy(stage=3)).num_layers
    6
    """
    return _with_layers(config, num_places(config.num_layers, strategy.stage * strategy.chunks))


@lru_cache(maxsize=1024)
def _with_layers(config: DecoderConfig, num_layers: int) -> DecoderConfig:
    return replace(config, num_layers=num_layers) if num_layers != config.num_layers else config


def check_depth(num_layers: int, strategy: Strategy, *, name: str = "num_layers") -> None:
    """Raises a UserError if there are fewer layers than stages x chunks.

    Args:
      name: what the error calls the number of layers.
    """
    stage, chunks = strategy.stage, strategy.chunks
    parts = stage * chunks
    if parts > 1 and num_layers < parts:
        raise UserError(
            f"{name}={num_layers} leaves stages without a layer: stage={stage} x chunks={chunks} "
            f"needs at least {parts} layers; add layers, or use fewer stages or chunks."
        )
