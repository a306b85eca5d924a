"""The train step: one jitted program for every layout."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.models.contract import StagedModel
from hybrid_jax.models.entries import BatchEntries
from hybrid_jax.pipeline.schedules import Schedule, forward_only, schedule
from hybrid_jax.sharding.doctor import Finding, place_params
from hybrid_jax.sharding.rules import BATCH_AXES, AxisRules, resolve_rules
from hybrid_jax.train.batch_check import admit, check_shapes
from hybrid_jax.train.gradients import BATCH_SPEC, make_loss_and_gradients
from hybrid_jax.train.guard import INITIAL_SCALE, judge
from hybrid_jax.train.initial import master_params
from hybrid_jax.train.stage_order import LayerOrder, layer_dims, order_name
from hybrid_jax.train.state import DEPTH_ORDER, TrainState, state_shardings
from hybrid_jax.train.state_check import check_state

PyTree = Any
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class TrainStep:
    """A compiled-on-first-use train step for one model on one layout; see `make_train_step`.

    Attributes:
      model, strategy, mesh: as given.
      schedule: the pipeline table that the step runs.
      rules: the resolved logical-axis rules.
      shapes: tree of `jax.ShapeDtypeStruct` of the parameters.
      placements: tree of `Placement` of the parameters.
      warnings: what the doctor found wasteful about them.
      shardings: `TrainState` of `NamedSharding`.
      seed: of dropout.
      check_values: whether the numbers of every batch are checked too.
    """

    model: StagedModel
    strategy: Strategy
    mesh: Mesh
    schedule: Schedule
    rules: AxisRules
    shapes: PyTree
    placements: PyTree
    warnings: tuple[Finding, ...]
    shardings: TrainState
    seed: int
    check_values: bool
    _init: Callable = field(repr=False)
    _init_from: Callable = field(repr=False)
    _step: Callable = field(repr=False)
    _evaluate: Callable = field(repr=False)
    _gradients: Callable = field(repr=False)
    _canonical: Callable = field(repr=False)
    _to_depth: Callable = field(repr=False)
    _to_stages: Callable = field(repr=False)

    def init(self, key: jax.Array) -> TrainState:
        """Returns a fresh state, born sharded: no array is ever whole on one device."""
        return self._init(key)

    def init_from(self, params: PyTree) -> TrainState:
        """Returns a fresh state with canonical `params`: {"embed", "blocks" [L, ...], "head"}.

        Args:
          params: NumPy or JAX arrays in nested dicts, NNX states or Flax's boxes, of any float that
            float32 holds exactly. JAX arrays are donated; NumPy's stay as they are.

        Raises:
          UserError: a name, shape or dtype is not the model's.
        """
        params = master_params(params, self.shapes)
        # Several processes would send each other all of it, to compare.
        if not self.mesh.is_multi_process:
            params = jax.device_put(params, self.shardings.params)
        return self._init_from(params)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one update; `state` is donated.

        Args:
          batch: what the model takes (`model.batch_entries`), arrays [B, ...] of NumPy or JAX; of
            a language model [B, T] `tokens`, `targets` (-100: weight 0), optional `weights` (or
            [B]; ones by default), `positions`, `segment_ids`.

        Returns:
          The next state and the metrics `loss` (mean per weight), `weight` (their sum),
          `grad_norm` (before clipping), `skipped` (updates so far), `skipped_in_a_row` and, in
          fp16, `loss_scale` as device scalars, not waited for.

        An update whose loss or gradient norm is not finite is skipped: nothing of the state changes
        but `step`, so that the next batch is another one, and `guard`, which counts it.

        Raises:
          UserError: the state was donated to an earlier step, or belongs to another layout, model
            or optimizer; or the batch is not what the model takes.
        """
        self.check_state(state)
        return self._step(state, self.put(batch))

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        """Returns `loss` (mean per weight) and `weight` of `batch`, without dropout."""
        self.check_state(state)
        return self._evaluate(state.params, self.put(batch))

    def gradients(
        self,
        params: TrainState | PyTree,
        batch: Batch,
        *,
        step: int = 0,
        loss_scale: float = INITIAL_SCALE,
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        """Returns (gradients, metrics) for canonical parameters; gradients are canonical too.

        Args:
          params: canonical ones, as `canonical_params` returns them, or a whole state of this
            step; not `state.params`, which an interleaved schedule keeps in another order.
          step: updates made before, which decide dropout.
          loss_scale: of fp16; divided out again.
        """
        if isinstance(params, TrainState):
            params = self.canonical_params(params)
        numbers = np.int32(step), np.float32(loss_scale)
        return self._gradients(master_params(params, self.shapes), self.put(batch), *numbers)

    def canonical_params(self, state: TrainState) -> PyTree:
        """Returns {"embed", "blocks" [L, ...], "head"}: the same tree for every layout."""
        self.check_state(state)
        return self._canonical(state.params)

    def canonical_state(self, state: TrainState) -> TrainState:
        """Returns the state with its layers in depth order, parameters and optimizer alike.

        Nothing moves, and the arrays are those of `state`, unless the schedule is interleaved.
        """
        self.check_state(state)
        return self._to_depth(state)

    def from_canonical(self, state: TrainState) -> TrainState:
        """The inverse of `canonical_state`, whatever layout `state` comes from.

        It may lie on other devices or on the host. Arrays that lie as `shardings` say are donated.
        """
        canonical = replace(self.abstract_state(), order=DEPTH_ORDER)
        check_state(state, canonical, anywhere=True)
        placed = jax.device_put(state, replace(self.shardings, order=DEPTH_ORDER))
        return self._to_stages(placed)

    def check_state(self, state: TrainState) -> None:
        """Raises a UserError unless `state` is one of this step's, and still there."""
        check_state(state, self.abstract_state())

    def lower(self, batch_shape: tuple[int, int] | Mapping[str, jax.ShapeDtypeStruct]):
        """Lowers the step for a batch of [B, T] tokens: the jax stages API, absent hardware too."""
        return self.trace(batch_shape).lower()

    def trace(self, batch_shape: tuple[int, int] | Mapping[str, jax.ShapeDtypeStruct]):
        """Traces the step for a batch of [B, T] tokens: the stage before `lower`, with a jaxpr."""
        batch = token_batch(*batch_shape) if isinstance(batch_shape, tuple) else batch_shape
        check_shapes(batch, self._batch_entries, **self._batch_parts)
        return self._step.trace(self.abstract_state(), dict(batch))

    def abstract_state(self) -> TrainState:
        """The state's shapes, dtypes and shardings, without any array."""
        return self._abstract_state

    @functools.cached_property
    def _abstract_state(self) -> TrainState:
        shapes = jax.eval_shape(self._init, jax.random.key(0))
        return jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(
                shape.shape, shape.dtype, sharding=sharding
            ),
            shapes,
            self.shardings,
        )

    def put(self, batch: Batch) -> dict[str, jax.Array]:
        """Checks a global batch, which every process has whole, and places it on the mesh.

        A process uploads what its own devices hold. What is placed already stays where it is.
        """
        arrays = admit(batch, self._batch_entries, values=self.check_values, **self._batch_parts)
        sharding = NamedSharding(self.mesh, BATCH_SPEC)
        if not self.mesh.is_multi_process:
            return jax.device_put(arrays, sharding)
        # `device_put` would send every batch around to compare it: 368 ms for 64 x 1024 tokens, on
        # two processes of one machine, instead of 0.3.
        return {name: _put_own_part(array, sharding) for name, array in arrays.items()}

    @property
    def _batch_entries(self) -> BatchEntries | None:
        entries = getattr(self.model, "batch_entries", None)
        return None if entries is None else entries()

    @property
    def num_batch_shards(self) -> int:
        """Slices of the global batch over the mesh; each is cut into microbatches."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @property
    def _batch_parts(self) -> dict[str, int]:
        return {"shards": self.num_batch_shards, "microbatches": self.strategy.microbatches}


def _put_own_part(array: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(array, jax.Array) and array.sharding == sharding:
        return array
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)


def make_train_step(
    model: StagedModel,
    tx: optax.GradientTransformation,
    strategy: Strategy,
    mesh: Mesh,
    *,
    clip_norm: float | None = None,
    spike_sigmas: float | None = None,
    seed: int = 0,
    bubble_value: float = 0.0,
    check_values: bool = True,
) -> TrainStep:
    """Returns the train step of `model` under `strategy` on `mesh`.

    Args:
      model: see `hybrid_jax.models.StagedModel`.
      tx: any optax transformation; it sees whole arrays (XLA splits its work as the state is).
      strategy: sizes, schedule, ZeRO level, rematerialisation, precision.
      mesh: from `make_mesh(strategy)`, or of absent devices for ahead-of-time compilation.
      clip_norm: gradients are scaled down to this global norm; None for no clipping.
      spike_sigmas: updates whose loss lies more than that many standard deviations above its
        running mean are skipped too; None: they are made.
      seed: of dropout; the key of an update is a function of (seed, step).
      bubble_value: what idle pipeline slots compute on; NaN shows that nothing leaks.
      check_values: whether tokens out of the vocabulary, negative weights and the like are looked
        for in every batch. It takes microseconds for arrays on the host, but fetches those on
        devices: False for those who feed these, and know that they are right.

    Raises:
      UserError: model, strategy and mesh do not fit, told with the parameter's path.
    """
    _check(model, strategy, mesh)
    rules = resolve_rules(strategy.rules)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    placements, warnings = place_params(shapes, model.axes(), rules, mesh, zero=strategy.zero)
    layers = order_name(strategy.stage, strategy.chunks)
    shardings = state_shardings(tx, shapes, placements, mesh, layers)
    sizes = (strategy.stage, strategy.microbatches, strategy.chunks)
    table = schedule(strategy.schedule, *sizes)

    layout = (strategy, rules, placements, mesh)
    train = make_loss_and_gradients(model, table, *layout, bubble_value=bubble_value)
    evaluate = make_loss_and_gradients(model, forward_only(*sizes), *layout, dropout=False)

    scaled = strategy.precision == "fp16"

    def step_key(step):
        return jax.random.key_data(jax.random.fold_in(jax.random.key(seed), step))

    def fresh(params):
        return TrainState(jnp.int32(0), params, tx.init(params), order=layers)

    dims = layer_dims(fresh, shapes)
    order = LayerOrder(mesh, strategy.chunks, dims, shardings)
    params_order = LayerOrder(mesh, strategy.chunks, dims.params, shardings.params)

    def from_depth(params):
        params = jax.lax.with_sharding_constraint(params, shardings.params)
        return params_order.to_stages(params)

    def init(key):
        return fresh(from_depth(model.init(key)))

    def step(state, batch):
        scale = state.guard.loss_scale
        grads, metrics = train(state.params, batch, step_key(state.step), scale)
        good, guard = judge(state.guard, metrics, scaled=scaled, spike_sigmas=spike_sigmas)
        if clip_norm is not None:
            grads = _clip(grads, metrics["grad_norm"], clip_norm)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        # Selects fuse with the update's own loops and leave every buffer to be reused in place.
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        metrics |= {"skipped": guard.skipped, "skipped_in_a_row": guard.skipped_in_a_row}
        if scaled:
            metrics["loss_scale"] = scale
        return TrainState(state.step + 1, params, opt_state, guard, layers), metrics

    def gradients(params, batch, step, loss_scale):
        grads, metrics = train(from_depth(params), batch, step_key(step), loss_scale)
        return params_order.to_depth(grads), metrics

    def to_depth(state):
        return replace(order.to_depth(state), order=DEPTH_ORDER)

    def to_stages(state):
        return order.to_stages(replace(state, order=layers))

    def moved(move, shardings, **options):
        if order.is_trivial:
            return lambda state: state
        return jax.jit(move, out_shardings=shardings, **options)

    whole = NamedSharding(mesh, PartitionSpec())
    return TrainStep(
        model=model,
        strategy=strategy,
        mesh=mesh,
        schedule=table,
        rules=rules,
        shapes=shapes,
        placements=placements,
        warnings=warnings,
        shardings=shardings,
        seed=seed,
        check_values=check_values,
        _init=jax.jit(init, out_shardings=shardings),
        _init_from=jax.jit(
            lambda params: fresh(from_depth(params)), out_shardings=shardings, donate_argnums=0
        ),
        _step=jax.jit(step, out_shardings=(shardings, whole), donate_argnums=0),
        _evaluate=jax.jit(
            lambda params, batch: evaluate(params, batch, step_key(0), jnp.float32(1))[1],
            out_shardings=whole,
        ),
        _gradients=jax.jit(gradients, out_shardings=(shardings.params, whole)),
        _canonical=jax.jit(params_order.to_depth, out_shardings=shardings.params),
        _to_depth=moved(to_depth, replace(shardings, order=DEPTH_ORDER)),
        _to_stages=moved(to_stages, shardings, donate_argnums=0),
    )


def _clip(grads: PyTree, norm: jax.Array, clip_norm: float) -> PyTree:
    """Scales gradients of global norm `norm` down to `clip_norm`, if they are larger."""
    scale = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda grad: grad * scale, grads)


def token_batch(batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a plain batch of tokens [B, T]."""
    tokens = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    weights = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
    return {"tokens": tokens, "targets": tokens, "weights": weights}


def _check(model: StagedModel, strategy: Strategy, mesh: Mesh) -> None:
    """Raises a UserError for what the step cannot run, before anything is traced."""
    if dict(mesh.shape) != strategy.axis_sizes:
        raise UserError(
            f"the mesh {dict(mesh.shape)} is not that of the strategy {strategy.axis_sizes}: "
            "build it with make_mesh(strategy)."
        )
    for axis in ("context", "expert"):
        if mesh.shape[axis] > 1:
            raise UserError(
                f"{axis}={mesh.shape[axis]}: this version trains over replica, data, stage and "
                f"model only; set {axis}=1 and give its devices to another axis."
            )
    parts = strategy.stage * strategy.chunks
    if model.num_layers % parts or (parts > 1 and model.num_layers == 0):
        raise UserError(
            f"num_layers={model.num_layers} does not divide into stage={strategy.stage} x "
            f"chunks={strategy.chunks} equal groups: use a multiple of {parts} layers, or fewer "
            "stages or chunks."
        )
    # A check in XLA:TPU's partitioner (`IsManualSubgroup`, libtpu 0.0.42) ends the process where a
    # tick recomputes a whole chunk beside another forward, and attention is a kernel on `model`.
    pipelined = strategy.stage > 1 and strategy.schedule != "gpipe" and strategy.model > 1
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    if on_tpu and pipelined and strategy.remat == "stage":
        raise UserError(
            f"remat='stage' with stage={strategy.stage}, model={strategy.model} and "
            f"schedule={strategy.schedule!r} makes XLA:TPU abort: use remat='layer', or "
            "schedule='gpipe'."
        )
