"""The decoder-only transformer, GPT-2 and Llama style, as a `Model`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.models.attention import Attend
from hybrid_jax.models.context import ONE_DEVICE, Constrain, Context
from hybrid_jax.models.contract import Batch, Params, PyTree, Sums
from hybrid_jax.models.entries import IGNORED, BatchEntries, token_entries
from hybrid_jax.models.functional import stack_axes, stack_init
from hybrid_jax.models.layers import (
    INIT_STD,
    Dropout,
    Norm,
    Projection,
    gelu,
    make_dropout,
    matmul,
    rotary,
    rotate,
    swiglu,
)
from hybrid_jax.models.loss import cross_entropy
from hybrid_jax.models.nnx_module import from_nnx

RESIDUAL = ("batch", "norm_length", "act_embed")


class Embed(nnx.Module):
    """Token table, plus learned positions where the config asks for them."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        def table(rows: int, name: str) -> nnx.Param:
            values = INIT_STD * jax.random.normal(rngs.params(), (rows, config.embed_dim))
            return nnx.Param(values, out_sharding=(name, "embed"))

        self.tokens = table(config.vocab_size, "vocab")
        if config.positions == "learned":
            self.positions = table(config.max_length, "positions")

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        x = self.tokens[...][tokens]
        if hasattr(self, "positions"):
            x = x + self.positions[...][positions]
        return x


class SelfAttention(nnx.Module):
    """Multi-head attention (Vaswani et al. 2017), heads grouped as in Ainslie et al. 2023."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        embed, head_dim, bias = config.embed_dim, config.head_dim, config.bias
        query, kv = (embed, config.num_heads, head_dim), (embed, config.num_kv_heads, head_dim)
        self.q = Projection(query, ("embed", "heads", "head_dim"), rngs, bias=bias)
        self.k = Projection(kv, ("embed", "kv_heads", "head_dim"), rngs, bias=bias)
        self.v = Projection(kv, ("embed", "kv_heads", "head_dim"), rngs, bias=bias)
        self.o = Projection(
            (config.num_heads, head_dim, embed),
            ("heads", "head_dim", "embed"),
            rngs,
            bias=bias,
            contracted=2,
            std=residual_std(config),
        )

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array | None,
        constrain: Constrain,
        attend: Attend,
    ) -> jax.Array:
        q = constrain(self.q(x), ("batch", "length", "act_heads", None))
        k = constrain(self.k(x), ("batch", "length", "act_kv_heads", None))
        v = constrain(self.v(x), ("batch", "length", "act_kv_heads", None))
        if self.config.positions == "rotary":
            cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = attend(q, k, v, segment_ids=segment_ids)
        return self.o(constrain(out, ("batch", "length", "act_heads", None)))


class MLP(nnx.Module):
    """Two matmuls around GELU, or the gated three of Shazeer 2020 (SwiGLU)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        embed, mlp, bias = config.embed_dim, config.mlp_dim, config.bias
        self.up = Projection((embed, mlp), ("embed", "mlp"), rngs, bias=bias)
        if config.activation == "silu":
            self.gate = Projection((embed, mlp), ("embed", "mlp"), rngs, bias=bias)
        self.down = Projection(
            (mlp, embed), ("mlp", "embed"), rngs, bias=bias, std=residual_std(config)
        )

    def __call__(self, x: jax.Array, constrain: Constrain) -> jax.Array:
        names = ("batch", "length", "act_mlp")
        up = constrain(self.up(x), names)
        if hasattr(self, "gate"):
            return self.down(swiglu(constrain(self.gate(x), names), up))
        return self.down(gelu(up))


class Block(nnx.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = Norm(config)
        self.attention = SelfAttention(config, rngs)
        self.mlp_norm = Norm(config)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array | None,
        dropouts: tuple[Dropout, Dropout],
        constrain: Constrain,
        attend: Attend,
    ) -> jax.Array:
        drop_attention, drop_mlp = dropouts
        with jax.named_scope("attention"):
            y = self.attention(self.attention_norm(x), positions, segment_ids, constrain, attend)
        x = constrain(x + drop_attention(y), RESIDUAL)
        with jax.named_scope("mlp"):
            y = self.mlp(self.mlp_norm(x), constrain)
        return constrain(x + drop_mlp(y), RESIDUAL)


class Head(nnx.Module):
    """The last norm and the logits [B, T, V], float32."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.norm = Norm(config)
        if not config.tied:
            shape = (config.embed_dim, config.vocab_size)
            values = INIT_STD * jax.random.normal(rngs.params(), shape)
            self.kernel = nnx.Param(values, out_sharding=("embed", "vocab"))

    def __call__(self, x: jax.Array, token_table: jax.Array, constrain: Constrain) -> jax.Array:
        kernel = self.kernel[...] if hasattr(self, "kernel") else token_table.T
        logits = matmul(self.norm(x), kernel, jnp.float32)
        return constrain(logits, ("batch", "length", "act_vocab"))


def residual_std(config: DecoderConfig) -> float:
    """Initial scale of what is added to the residual stream 2L times (Radford et al. 2019)."""
    return INIT_STD / (2 * config.num_layers) ** 0.5


class Decoder:
    """A decoder-only language model; see `Model` for the contract of its methods.

    Dropout zeroes entries of the embedding and of both residual branches; attention
    probabilities are not dropped, because fused attention kernels never hold them.

    >>> from hybrid_jax.config.model import preset
    >>> model = Decoder(preset("nano", num_layers=2, vocab_size=16))
    >>> params = model.init(jax.random.key(0))
    >>> params["blocks"]["attention"]["q"]["kernel"].shape
    (2, 128, 4, 32)
    >>> model.logits(params, {"tokens": jnp.zeros((1, 5), jnp.int32)}).shape
    (1, 5, 16)

    Args:
      config: sizes and style.
      attention: (q [B, T, N, H], k and v [B, T, K, H], segment_ids=[B, T] or None) -> [B, T, N, H],
        causal; None: the context's `attend`.
    """

    head_dims: tuple[str, ...] = ("batch", "length")
    losses: Mapping[str, float] = MappingProxyType({"loss": 1.0})

    def __init__(self, config: DecoderConfig, attention: Attend | None = None):
        self.config = config
        self.num_layers = config.num_layers
        self._attention = attention
        self._embed = from_nnx(lambda rngs: Embed(config, rngs))
        self._block = from_nnx(lambda rngs: Block(config, rngs))
        self._head = from_nnx(lambda rngs: Head(config, rngs))

    def init(self, key: jax.Array) -> Params:
        """Returns fresh float32 parameters, blocks stacked [L, ...]."""
        embed_key, blocks_key, head_key = jax.random.split(key, 3)
        return {
            "embed": self._embed.init(embed_key),
            "blocks": stack_init(self._block.init, self.num_layers)(blocks_key),
            "head": self._head.init(head_key),
        }

    def axes(self) -> PyTree:
        """Returns the logical names of every parameter's dims."""
        return {
            "embed": self._embed.axes,
            "blocks": stack_axes(self._block.axes),
            "head": self._head.axes,
        }

    def batch_entries(self) -> BatchEntries:
        """Returns what a batch must hold."""
        learned = self.config.positions == "learned"
        return token_entries(self.config.vocab_size, self.config.max_length if learned else None)

    def weights(self, batch: Batch) -> Sums:
        """Returns the weight of every token [B, T], 0 where its target is ignored."""
        given = batch.get("weights", jnp.ones(batch["targets"].shape, jnp.float32))
        return {"loss": jnp.where(batch["targets"] == IGNORED, 0, given)}

    def embed(self, shared: Params, batch: Batch, ctx: Context = ONE_DEVICE) -> jax.Array:
        """Returns x [B, T, D] for `batch["tokens"]` [B, T]."""
        x = self._embed.apply(shared["embed"], batch["tokens"], _positions(batch))
        return ctx.constrain(self._dropout(ctx.key, batch)(x), RESIDUAL)

    def layer(
        self, params: Params, carry: jax.Array, batch: Batch, ctx: Context = ONE_DEVICE
    ) -> jax.Array:
        """Returns one layer's output [B, T, D]; tokens see earlier ones of their own segment."""
        keys = (None, None) if ctx.key is None else jax.random.split(ctx.key)
        return self._block.apply(
            params,
            carry,
            _positions(batch),
            batch.get("segment_ids"),
            tuple(self._dropout(key, batch) for key in keys),
            ctx.constrain,
            self._attention or ctx.attend,
        )

    def head(
        self, shared: Params, carry: jax.Array, batch: Batch, ctx: Context = ONE_DEVICE
    ) -> Sums:
        """Returns the summed cross entropy in nats, weighted."""
        losses = cross_entropy(self._logits(shared, carry, ctx), batch["targets"])
        return {"loss": jnp.sum(self.weights(batch)["loss"] * losses)}

    def logits(self, params: Params, batch: Batch, ctx: Context = ONE_DEVICE) -> jax.Array:
        """Returns the whole model's logits [B, T, V] float32, without dropout."""

        def layer(x, layer_params):
            return self.layer(layer_params, x, batch, ctx), None

        x = self.embed(params, batch, ctx)
        x, _ = lax.scan(layer, x, params["blocks"])
        return self._logits(params, x, ctx)

    def _logits(self, shared: Params, x: jax.Array, ctx: Context) -> jax.Array:
        return self._head.apply(shared["head"], x, shared["embed"]["tokens"], ctx.constrain)

    def _dropout(self, key: jax.Array | None, batch: Batch) -> Dropout:
        return make_dropout(self.config.dropout, key, batch)


def _positions(batch: Batch) -> jax.Array:
    """Positions [B, T], or [1, T] where every sequence starts at 0."""
    if "positions" in batch:
        return batch["positions"]
    return jnp.arange(batch["tokens"].shape[1])[None]
