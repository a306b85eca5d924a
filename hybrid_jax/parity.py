"""One device against every layout: the same loss, the same gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.models.context import Context
from hybrid_jax.models.contract import Model
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.sharding.placement import path_name
from hybrid_jax.train.step import make_train_step

PyTree = Any


@dataclass(frozen=True)
class LayoutParity:
    """How far one layout is from one device.

    Attributes:
      strategy: the layout, in f32.
      loss_error: |loss - one device's loss| / |one device's loss|.
      gradient_errors: for every parameter path, the largest difference of an entry divided by the
        largest entry of that parameter's gradient on one device; or, where that gradient is zero
        but for rounding (an attention's key bias), by the largest entry of all gradients.
    """

    strategy: Strategy
    loss_error: float
    gradient_errors: Mapping[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The largest error and where it is: "loss" or a parameter path."""
        errors = {"loss": self.loss_error, **self.gradient_errors}
        # NaN compares false with everything: `max` alone could step over it.
        return max(errors.items(), key=lambda item: np.nan_to_num(item[1], nan=np.inf))


@dataclass(frozen=True)
class ParityReport:
    """The result of `check_parity`: one row for each layout; true when all of them agree."""

    rows: tuple[LayoutParity, ...]
    rtol: float

    def __bool__(self) -> bool:
        return all(row.worst[1] <= self.rtol for row in self.rows)

    def __str__(self) -> str:
        lines = [f"parity with one device (f32, rtol {self.rtol:g})"]
        for row in self.rows:
            path, error = row.worst
            verdict = "equal " if error <= self.rtol else "DIFFERS"
            lines.append(f"  {verdict} {error:8.1e} at {path:<28} {row.strategy.describe()}")
        return "\n".join(lines)

    def raise_if_different(self) -> None:
        """Raises AssertionError with the whole table unless every layout agrees."""
        if not self:
            raise AssertionError(str(self))


def check_parity(
    model: Model,
    strategies: Iterable[Strategy],
    *,
    batch: Mapping[str, Any],
    key: jax.Array | None = None,
    seed: int = 0,
    rtol: float = 1e-5,
    devices: Sequence[Any] | None = None,
    bubble_value: float = 0.0,
) -> ParityReport:
    """Compares loss and every gradient of each layout with those of one device, in f32.

    The reference is written without this library's executor: a scan over all layers and
    `jax.value_and_grad` on the whole batch.

    Args:
      model: any `Model`; with dropout the masks are the same in every layout.
      strategies: layouts to check; their precision is set to f32.
      batch: global host arrays, as for `TrainStep.step`.
      key: of the random parameters.
      seed: of dropout.
      rtol: tolerance relative to the largest entry of a parameter's gradient.
      devices: the first `num_devices` of these for each layout; all devices by default.
      bubble_value: what idle pipeline slots compute on; NaN shows that nothing leaks.

    >>> import hybrid_jax as hj
    >>> model = hj.models.Decoder(hj.models.preset("nano", num_layers=2, vocab_size=64))
    >>> tokens = np.arange(32).reshape(4, 8)
    >>> batch = {"tokens": tokens, "targets": (tokens + 1) % 64}
    >>> bool(hj.check_parity(model, [hj.Strategy(data=2), hj.Strategy(stage=2)], batch=batch))
    True
    """
    params = model.init(jax.random.key(0) if key is None else key)
    # Moved off zero and one, so that no bias or norm scale has a gradient that hides a mistake.
    params = _perturb(params, jax.random.key(1))
    loss, grads = jax.device_get(reference_loss_and_gradients(model, params, batch, seed=seed))
    scales = _scales(grads)
    devices = jax.devices() if devices is None else devices
    rows = []
    for strategy in strategies:
        strategy = replace(strategy, precision="f32")
        mesh = make_mesh(strategy, devices[: strategy.num_devices])
        train = make_train_step(
            model, optax.identity(), strategy, mesh, seed=seed, bubble_value=bubble_value
        )
        found, metrics = jax.device_get(train.gradients(jax.device_get(params), batch))
        errors = jax.tree.map(_relative_error, found, grads, scales)
        by_path = {path_name(p): e for p, e in jax.tree_util.tree_leaves_with_path(errors)}
        found_loss = metrics.get("objective", metrics["loss"])
        loss_error = _relative_error(found_loss, loss, abs(float(loss)))
        rows.append(LayoutParity(strategy, loss_error, by_path))
    return ParityReport(tuple(rows), rtol)


def reference_loss_and_gradients(
    model: Model, params: PyTree, batch: Mapping[str, Any], *, seed: int = 0
) -> tuple[jax.Array, PyTree]:
    """Returns (what is trained on, its gradients) on one device, written the ordinary way."""
    batch = {name: jnp.asarray(leaf) for name, leaf in batch.items()}
    size = jax.tree.leaves(batch)[0].shape[0]
    batch["example"] = jnp.arange(size, dtype=jnp.int32)
    if "tokens" in batch:
        batch.setdefault("weights", jnp.ones(batch["tokens"].shape, jnp.float32))
    key = jax.random.fold_in(jax.random.key(seed), 0)

    def objective(params):
        shared = {name: part for name, part in params.items() if name != "blocks"}
        last = jax.random.fold_in(key, model.num_layers)
        carry = model.embed(shared, batch, Context(key=last))

        def layer(carry, scanned):
            layer_params, index = scanned
            ctx = Context(key=jax.random.fold_in(key, index), layer=index)
            return model.layer(layer_params, carry, batch, ctx), None

        carry, _ = lax.scan(layer, carry, (params["blocks"], jnp.arange(model.num_layers)))
        sums, weights = model.head(shared, carry, batch, Context()), model.weights(batch)
        terms = (factor * sums[name] / weights[name].sum() for name, factor in model.losses.items())
        return sum(terms)

    with jax.default_matmul_precision("highest"):
        return jax.jit(jax.value_and_grad(objective))(params)


def _perturb(params: PyTree, key: jax.Array) -> PyTree:
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = [0.05 * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, [p + n for p, n in zip(leaves, noise, strict=True)])


def _scales(grads: PyTree) -> PyTree:
    """What each gradient's error is measured against; see `LayoutParity.gradient_errors`."""
    largest = jax.tree.map(lambda grad: float(np.max(np.abs(grad), initial=0)), grads)
    overall = max(jax.tree.leaves(largest))
    return jax.tree.map(lambda size: size if size > 1e-5 * overall else overall, largest)


def _relative_error(found: np.ndarray, expected: np.ndarray, scale: float) -> float:
    difference = np.max(np.abs(np.asarray(found, np.float64) - expected), initial=0)
    return float(difference / scale) if scale else float(difference)
