"""Random streams of an NNX module: set anew for every call, and watched in a trial call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid_jax.models.contract import PyTree
from hybrid_jax.models.functional import nest


def reseed(streams: dict[tuple, nnx.RngState], key: jax.Array | None) -> PyTree:
    """Returns the state of all streams at the start of a call, from the call's key alone."""
    key = jax.random.key(0) if key is None else key
    fresh: dict[tuple, Any] = {}
    for index, (path, variable) in enumerate(streams.items()):
        if jnp.issubdtype(variable.dtype, jax.dtypes.prng_key):
            own = jax.random.fold_in(key, index)
            fresh[path] = jax.random.split(own, variable.shape) if variable.shape else own
        else:
            fresh[path] = jnp.zeros(variable.shape, variable.dtype)
    return nest(fresh)


@dataclass(eq=False)
class Draws:
    """What a trial call draws.

    Attributes:
      drawn: the streams that were drawn from, by number.
      dropouts: for each dropout of the module, in words, the number of its stream; None: it is
        given one when it is called.
    """

    drawn: set[int] = field(default_factory=set)
    dropouts: dict[str, int | None] = field(default_factory=dict)

    def silent(self) -> list[str]:
        """The dropouts that drew nothing."""
        return [
            name
            for name, stream in self.dropouts.items()
            if (not self.drawn if stream is None else stream not in self.drawn)
        ]

    def active(self) -> list[str]:
        """The dropouts that drew something."""
        return [name for name, stream in self.dropouts.items() if stream in self.drawn]


class _WatchedStream(nnx.RngStream):
    """A stream that notes that it was drawn from."""

    draws: Draws | None = None
    number: int = 0

    def __call__(self) -> jax.Array:
        if self.draws is not None:
            self.draws.drawn.add(self.number)
        return super().__call__()


def watch(module: nnx.Module) -> Draws:
    """Replaces the streams of a module by ones that note in the result when they are drawn from."""
    draws = Draws()
    watched: dict[int, _WatchedStream] = {}
    for node in [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.Pytree)]:
        for name, value in list(vars(node).items()):
            if isinstance(value, nnx.RngStream):
                if id(value) not in watched:
                    stream = _WatchedStream(value.key.get_value(), tag=value.tag)
                    stream.draws, stream.number = draws, len(watched)
                    watched[id(value)] = stream
                setattr(node, name, watched[id(value)])
    for path, node in nnx.iter_modules(module):
        rate = _rate(node)
        if rate > 0:
            name = f"{'.'.join(map(str, path)) or type(node).__name__} (rate {rate})"
            stream = getattr(node, "rngs", None)
            draws.dropouts[name] = getattr(stream, "number", None)
    return draws


def _rate(module: nnx.Module) -> float:
    if isinstance(module, nnx.Dropout):
        return module.rate
    return module.dropout_rate if isinstance(module, nnx.MultiHeadAttention) else 0
