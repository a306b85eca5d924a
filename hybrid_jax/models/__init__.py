"""Models: a decoder in two styles, and adapters that make a Flax module of yours trainable."""

from hybrid_jax.config.model import DecoderConfig, flops_per_token, num_params, preset
from hybrid_jax.models.attention import dot_product_attention
from hybrid_jax.models.context import Context
from hybrid_jax.models.contract import Model
from hybrid_jax.models.decoder import Decoder
from hybrid_jax.models.entries import BatchEntries, Entry, token_entries
from hybrid_jax.models.parts import from_parts
from hybrid_jax.models.whole import from_flax

__all__ = [
    "BatchEntries",
    "Context",
    "Decoder",
    "DecoderConfig",
    "Entry",
    "Model",
    "dot_product_attention",
    "flops_per_token",
    "from_flax",
    "from_parts",
    "num_params",
    "preset",
    "token_entries",
]
