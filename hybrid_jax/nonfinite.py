"""Where a loss or a gradient stopped being a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybrid_jax.models.probed import FORWARD, GRADIENT, Probed
from hybrid_jax.sharding.placement import path_name
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep, make_train_step

PyTree = Any
Kind = Literal["parameter", "batch", "forward", "gradient", "parameter gradient"]


@dataclass(frozen=True)
class Nonfinite:
    """The first array of a step that is not finite, in the order in which they are computed.

    Attributes:
      kind: "parameter" or "batch", which the step is given; "forward", an activation; "gradient",
        the loss's with respect to an activation; or "parameter gradient", where every activation
        and its gradient are finite, but not their product.
      array: its name: the path of a parameter, an entry of the batch, or what it is the output of.
      layer: depth of the layer, from 0; None where it belongs to none.
      examples: indices in the global batch of all that are affected there; empty for parameters.
      microbatch: of the first of them.
      loss: of the whole batch.
    """

    kind: Kind
    array: str
    layer: int | None
    examples: tuple[int, ...]
    microbatch: int | None
    loss: float

    def __str__(self) -> str:
        subject = {
            "parameter": f"the parameter {self.array}",
            "batch": f"batch[{self.array!r}]",
            "forward": f"the output of {self.array}",
            "gradient": f"the gradient of the output of {self.array}",
            "parameter gradient": f"the gradient of the parameter {self.array}",
        }[self.kind]
        where = ""
        if self.layer is not None and self.kind.startswith("parameter"):
            where = f" in layer {self.layer}"
        if self.examples:
            shown = ", ".join(map(str, self.examples[:5])) + ", …" * (len(self.examples) > 5)
            where += f" for example {shown} (microbatch {self.microbatch})"
        return f"first not finite: {subject}{where}; loss {self.loss:.4g}"


def locate_nonfinite(
    train: TrainStep,
    state: TrainState,
    batch: Mapping[str, Any],
    *,
    step: int | None = None,
    loss_scale: float | None = None,
) -> Nonfinite | None:
    """Runs a step again, with probes, and returns what first was not finite; None: all was.

    The program is the train step's own, on the same layout, with the same dropout masks; nothing
    is updated, and `state` is not donated. It is compiled anew for every shape of batch.

    >>> import hybrid_jax as hj
    >>> model = hj.models.Decoder(hj.models.preset("nano", num_layers=2, vocab_size=64))
    >>> layout = hj.Strategy(data=2, precision="f32")
    >>> mesh = hj.make_mesh(layout, jax.devices()[:2])
    >>> train = make_train_step(model, optax.sgd(1.0), layout, mesh)
    >>> state = train.init(jax.random.key(0))
    >>> kernel = state.params["blocks"]["mlp"]["up"]["kernel"]
    >>> state.params["blocks"]["mlp"]["up"]["kernel"] = kernel.at[1, 0, 0].set(jnp.nan)
    >>> tokens = np.arange(32).reshape(4, 8)
    >>> print(hj.locate_nonfinite(train, state, {"tokens": tokens, "targets": tokens}))
    first not finite: the parameter blocks/mlp/up/kernel in layer 1; loss nan

    Args:
      train: the step.
      state: before the update, or after one that was skipped, which leaves parameters alone.
      batch: what the update was given.
      step: updates before it, which decide dropout; None: `state.step`, of the state before.
      loss_scale: of the update, in fp16; None: that of the state.

    Raises:
      UserError: a state or a batch that the step does not take.
    """
    return Locator(train).locate(state, batch, step=step, loss_scale=loss_scale)


class Locator:
    """Locates what is not finite in one step after the other; each shape of batch compiles once.

    Args:
      train: the step to run again.
    """

    def __init__(self, train: TrainStep) -> None:
        self.train = train
        self._probed: dict[int, TrainStep] = {}

    def locate(
        self,
        state: TrainState,
        batch: Mapping[str, Any],
        *,
        step: int | None = None,
        loss_scale: float | None = None,
    ) -> Nonfinite | None:
        """Returns what first was not finite; arguments as of `locate_nonfinite`."""
        train = self.train
        params, admitted = train.canonical_params(state), train.put(batch)
        probed = self._step(next(iter(admitted.values())).shape[0])
        model = probed.model
        assert isinstance(model, Probed)
        grads, metrics = probed.gradients(
            model.wrap(params),
            admitted,
            step=int(state.step) if step is None else step,
            loss_scale=float(state.guard.loss_scale) if loss_scale is None else loss_scale,
        )
        loss = float(metrics["loss"])
        return (
            _in_parameters(params, "parameter", loss)
            or _in_batch(admitted, train, loss)
            or _in_activations(grads, train, loss)
            or _in_parameters(_without_probes(grads, train), "parameter gradient", loss)
        )

    def _step(self, size: int) -> TrainStep:
        if size not in self._probed:
            train = self.train
            self._probed[size] = make_train_step(
                Probed(train.model, size),
                optax.identity(),
                train.strategy,
                train.mesh,
                schedule=train.schedule,
                seed=train.seed,
                check_values=False,
            )
        return self._probed[size]


def _in_parameters(params: PyTree, kind: Kind, loss: float) -> Nonfinite | None:
    """The first of the parameters, or of their gradients, and its layer."""

    def is_finite(path, leaf):
        stacked = path[0].key == "blocks"
        return jnp.isfinite(leaf).all(axis=tuple(range(1 if stacked else 0, leaf.ndim)))

    finite = jax.device_get(
        jax.jit(lambda p: jax.tree_util.tree_map_with_path(is_finite, p))(params)
    )
    for path, flags in jax.tree_util.tree_leaves_with_path(finite):
        if not np.all(flags):
            layer = int(np.argmin(flags)) if np.ndim(flags) else None
            return Nonfinite(kind, path_name(path), layer, (), None, loss)
    return None


def _in_batch(batch: Mapping[str, jax.Array], train: TrainStep, loss: float) -> Nonfinite | None:
    for name, leaf in batch.items():
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            bad = ~jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
            if examples := _indices(jax.device_get(bad)):
                return _found("batch", name, None, examples, train, len(bad), loss)
    return None


def _in_activations(grads: PyTree, train: TrainStep, loss: float) -> Nonfinite | None:
    probes = [grads["embed"]["probe"], *grads["blocks"].get("probe", ())]
    bad = np.stack(jax.device_get(probes)) != 0  # [embedding and layers, examples, 2]
    size, last = bad.shape[1], len(bad) - 1
    names = ["the embedding", *(f"layer {layer}" for layer in range(last))]
    for index in range(len(bad)):
        if examples := _indices(bad[index, :, FORWARD]):
            return _found("forward", names[index], _layer(index), examples, train, size, loss)
    if not np.isfinite(loss) and not bad[..., GRADIENT].any():
        return Nonfinite("forward", "the head", None, (), None, loss)
    for index in reversed(range(len(bad))):
        if examples := _indices(bad[index, :, GRADIENT]):
            if index == last and not np.isfinite(loss):
                return _found("forward", "the head", None, examples, train, size, loss)
            return _found("gradient", names[index], _layer(index), examples, train, size, loss)
    return None


def _layer(index: int) -> int | None:
    return index - 1 if index else None


def _found(
    kind: Kind,
    array: str,
    layer: int | None,
    examples: tuple[int, ...],
    train: TrainStep,
    size: int,
    loss: float,
) -> Nonfinite:
    local = size // train.num_batch_shards
    microbatch = examples[0] % local // (local // train.strategy.microbatches)
    return Nonfinite(kind, array, layer, examples, microbatch, loss)


def _indices(flags: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(flags).tolist())


def _without_probes(grads: PyTree, train: TrainStep) -> PyTree:
    blocks = grads["blocks"]["model"] if train.model.num_layers else {}
    return {**grads, "embed": grads["embed"]["model"], "blocks": blocks}
