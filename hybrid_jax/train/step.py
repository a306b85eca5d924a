"""The train step: one jitted program for every layout."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.models.contract import Model
from hybrid_jax.pipeline import schedules
from hybrid_jax.pipeline.runnable import check_runs
from hybrid_jax.pipeline.schedules import Schedule
from hybrid_jax.sharding.doctor import Finding, place_params
from hybrid_jax.sharding.rules import BATCH_AXES, AxisRules, resolve_rules
from hybrid_jax.train.batch_check import admit, check_shapes
from hybrid_jax.train.functions import StepFunctions, make_functions
from hybrid_jax.train.gradients import BATCH_SPEC, make_loss_and_gradients
from hybrid_jax.train.guard import INITIAL_SCALE
from hybrid_jax.train.initial import master_params
from hybrid_jax.train.layout_check import check_layout
from hybrid_jax.train.stage_order import order_name
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

    model: Model
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
    _functions: StepFunctions = field(repr=False)

    def init(self, key: jax.Array) -> TrainState:
        """Returns a fresh state, born sharded: no array is ever whole on one device."""
        return self._functions.init(key)

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
        return self._functions.init_from(params)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one update; `state` is donated.

        Args:
          batch: what the model takes (`model.batch_entries`), arrays [B, ...] of NumPy or JAX; of
            a language model [B, T] `tokens`, `targets` (-100: weight 0), optional `weights` (or
            [B]; ones by default), `positions`, `segment_ids`.

        Returns:
          The next state and the metrics: the value of every sum of the model, `loss` (mean per
          weight) and others by name; `weight` of the loss, `objective` (what is trained on, where
          it is not the loss alone), `grad_norm` (before clipping), `skipped` (updates so far),
          `skipped_in_a_row` and, in fp16, `loss_scale`. They lie on the devices, not waited for.

        An update whose loss or gradient norm is not finite is skipped: nothing of the state changes
        but `step`, so that the next batch is another one, and `guard`, which counts it.

        Raises:
          UserError: the state was donated to an earlier step, or belongs to another layout, model
            or optimizer; or the batch is not what the model takes.
        """
        self.check_state(state)
        return self._functions.step(state, self.put(batch))

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        """Returns the value of every sum of the model, and `weight`, without dropout."""
        self.check_state(state)
        return self._functions.evaluate(state.params, self.put(batch))[0]

    def sums(self, state: TrainState, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Returns the (sum, weight) of every name behind `evaluate`, to add up over batches."""
        self.check_state(state)
        return self._functions.evaluate(state.params, self.put(batch))[1]

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
        return self._functions.gradients(
            master_params(params, self.shapes), self.put(batch), *numbers
        )

    def canonical_params(self, state: TrainState) -> PyTree:
        """Returns {"embed", "blocks" [L, ...], "head"}: the same tree for every layout."""
        self.check_state(state)
        return self._functions.canonical_params(state.params)

    def canonical_state(self, state: TrainState) -> TrainState:
        """Returns the state with its layers in depth order, parameters and optimizer alike.

        Nothing moves, and the arrays are those of `state`, unless the schedule is interleaved.
        """
        self.check_state(state)
        return self._functions.to_depth(state)

    def from_canonical(self, state: TrainState) -> TrainState:
        """The inverse of `canonical_state`, whatever layout `state` comes from.

        It may lie on other devices or on the host. Arrays that lie as `shardings` say are donated.
        """
        canonical = replace(self.abstract_state(), order=DEPTH_ORDER)
        check_state(state, canonical, anywhere=True)
        placed = jax.device_put(state, replace(self.shardings, order=DEPTH_ORDER))
        return self._functions.to_stages(placed)

    def check_state(self, state: TrainState) -> None:
        """Raises a UserError unless `state` is one of this step's, and still there."""
        check_state(state, self.abstract_state())

    def lower(self, batch_shape: tuple[int, ...] | Mapping[str, jax.ShapeDtypeStruct]):
        """Lowers the step for a batch of that shape: the jax stages API, absent hardware too.

        Args:
          batch_shape: (B, T) of a model with a length, (B,) of any other, whose further dims are
            those of its example batch; or the shapes of all entries.
        """
        return self.trace(batch_shape).lower()

    def trace(self, batch_shape: tuple[int, ...] | Mapping[str, jax.ShapeDtypeStruct]):
        """Traces the step for a batch of that shape: the stage before `lower`, with a jaxpr."""
        batch = self.batch_shapes(batch_shape)
        return self._functions.step.trace(self.abstract_state(), batch)

    def batch_shapes(
        self, batch_shape: tuple[int, ...] | Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of all entries of a batch, checked; argument as of `lower`."""
        entries = self.model.batch_entries()
        is_sizes = isinstance(batch_shape, tuple)
        batch = entries.shapes(batch_shape) if is_sizes else dict(batch_shape)
        check_shapes(batch, entries, **self._batch_parts)
        return batch

    def abstract_state(self) -> TrainState:
        """The state's shapes, dtypes and shardings, without any array."""
        return self._abstract_state

    @functools.cached_property
    def _abstract_state(self) -> TrainState:
        shapes = jax.eval_shape(self._functions.init, jax.random.key(0))
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
        arrays = admit(
            batch, self.model.batch_entries(), values=self.check_values, **self._batch_parts
        )
        sharding = NamedSharding(self.mesh, BATCH_SPEC)
        if not self.mesh.is_multi_process:
            return jax.device_put(arrays, sharding)
        # `device_put` would send every batch around to compare it: 368 ms for 64 x 1024 tokens, on
        # two processes of one machine, instead of 0.3.
        return {name: _put_own_part(array, sharding) for name, array in arrays.items()}

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
    model: Model,
    tx: optax.GradientTransformation,
    strategy: Strategy,
    mesh: Mesh,
    *,
    schedule: Schedule | None = None,
    clip_norm: float | None = None,
    spike_sigmas: float | None = None,
    seed: int = 0,
    bubble_value: float = 0.0,
    check_values: bool = True,
) -> TrainStep:
    """Returns the train step of `model` under `strategy` on `mesh`.

    Args:
      model: see `hybrid_jax.models.Model`.
      tx: any optax transformation; it sees whole arrays (XLA splits its work as the state is).
      strategy: sizes, schedule, ZeRO level, rematerialisation, precision.
      mesh: from `make_mesh(strategy)`, or of absent devices for ahead-of-time compilation.
      schedule: a pipeline table of one's own, of the strategy's sizes; None: the strategy's.
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
    check_layout(model, strategy, mesh)
    rules = resolve_rules(strategy.rules)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    placements, warnings = place_params(shapes, model.axes(), rules, mesh, zero=strategy.zero)
    order = order_name(strategy.stage, strategy.chunks)
    shardings = state_shardings(tx, shapes, placements, mesh, order)
    sizes = (strategy.stage, strategy.microbatches, strategy.chunks)
    if schedule is None:
        schedule = schedules.schedule(strategy.schedule, *sizes)
    else:
        check_runs(schedule, *sizes)
    layout = (strategy, rules, placements, mesh)
    functions = make_functions(
        model.init,
        make_loss_and_gradients(model, schedule, *layout, bubble_value=bubble_value),
        make_loss_and_gradients(model, schedules.forward_only(*sizes), *layout, dropout=False),
        tx,
        mesh,
        shapes,
        shardings,
        chunks=strategy.chunks,
        seed=seed,
        clip_norm=clip_norm,
        spike_sigmas=spike_sigmas,
        scaled=strategy.precision == "fp16",
    )
    return TrainStep(
        model=model,
        strategy=strategy,
        mesh=mesh,
        schedule=schedule,
        rules=rules,
        shapes=shapes,
        placements=placements,
        warnings=warnings,
        shardings=shardings,
        seed=seed,
        check_values=check_values,
        _functions=functions,
    )
