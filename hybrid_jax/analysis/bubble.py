"""The pipeline bubble: predicted from the schedule, measured from step times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from hybrid_jax.config.checks import check_int
from hybrid_jax.errors import RunError, UserError
from hybrid_jax.timing import Program, compile_program, measure
from hybrid_jax.train.step import make_train_step

if TYPE_CHECKING:
    from hybrid_jax.config.strategy import Strategy
    from hybrid_jax.train.step import TrainStep


@dataclass(frozen=True)
class Bubble:
    """Idle time of a pipeline as a fraction of its work.

    Attributes:
      predicted: of the schedule, (S-1)/(vM) for 1F1B and its interleaved form.
      measured: from step times; None where it was not measured.
      stages_seconds: median time of a step with all stages, as `measure_bubble` counts time.
      one_stage_seconds: the same at `stage=1`.
    """

    predicted: float
    measured: float | None = None
    stages_seconds: float | None = None
    one_stage_seconds: float | None = None


def measure_bubble(train: TrainStep, batch_shape: tuple[int, ...], *, steps: int = 5) -> Bubble:
    """Times the step against the same work at `stage=1`: what the pipeline adds is its bubble.

    Both programs have the same data, model and replica axes, microbatches, remat and precision,
    and update by plain SGD. They run interleaved, one step of each in turn, on a random batch.

    S stages have S times the hardware of one, so the bubble is S t_S / t_1 - 1. It holds what the
    hops between stages cost too.

    Virtual CPU devices share the cores, which work without pause whatever the layout: more of them
    gain nothing, and an idle slot costs nothing. So there the idle slots are made to work
    (`skip_bubbles=False`, as on other devices), the time is CPU time of the process, and t_1 is
    that of S copies of the work at `stage=1`, side by side on as many devices as the pipeline has:
    on fewer, the threads of the CPU backend split matmuls, wait for each other, and burn CPU time.

    >>> import hybrid_jax as hj
    >>> model = hj.models.Decoder(hj.models.preset("nano", num_layers=2, embed_dim=16))
    >>> strategy = hj.Strategy(stage=2, microbatches=4)
    >>> mesh = hj.make_mesh(strategy, jax.devices()[:2])
    >>> train = hj.make_train_step(model, optax.sgd(1e-3), strategy, mesh)
    >>> bubble = measure_bubble(train, (8, 16), steps=1)
    >>> bubble.predicted
    0.25

    Args:
      train: the step; its state is not needed.
      batch_shape: as of `inspect`.
      steps: timed steps of each program, after one that is not.

    Raises:
      UserError: one stage only, or devices that are not here.
      RunError: the work of all stages does not fit on the devices of one.
    """
    check_int("steps", steps, at_least=1)
    check_measurable(train)
    shares_cores = _platform(train) == "cpu"
    stages = train.strategy.stage
    strategy = replace(train.strategy, skip_bubbles=False) if shares_cores else train.strategy
    copies = stages if shares_cores else 1
    replica = copies * strategy.replica
    alone = replace(strategy, stage=1, chunks=1, schedule="1f1b", replica=replica)
    batch, *rest = batch_shape
    try:
        programs = [
            _program(train, strategy, train.mesh, batch_shape),
            _program(train, alone, _meshed(train.mesh, alone), (copies * batch, *rest)),
        ]
        times = measure(programs, steps)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(
            f"measuring the bubble: the work of stage={stages} stages does not fit on the devices "
            "of one: measure with fewer layers or a smaller batch."
        ) from error
    seconds = times.cpu_seconds if shares_cores else times.wall_seconds
    return Bubble(
        predicted=train.schedule.simulate().bubble_fraction,
        measured=stages * float(np.median(seconds[:, 0] / seconds[:, 1])) - 1,
        stages_seconds=float(np.median(seconds[:, 0])),
        one_stage_seconds=float(np.median(seconds[:, 1])),
    )


def check_measurable(train: TrainStep) -> None:
    """Raises a UserError where `measure_bubble` would, before anything is compiled."""
    if train.strategy.stage == 1:
        raise UserError("stage=1 has no bubble to measure: choose a strategy with stage > 1.")
    platform = _platform(train)
    try:
        here = set(jax.devices(platform))
    except RuntimeError:
        here = set()
    if not set(train.mesh.devices.flat) <= here:
        raise UserError(
            f"the {platform} devices of this mesh are not here, so nothing can be timed on them: "
            "inspect without measuring, or build the mesh from jax.devices()."
        )


def _platform(train: TrainStep) -> str:
    return train.mesh.devices.flat[0].platform


def _meshed(mesh: Mesh, strategy: Strategy) -> Mesh:
    """As many devices of `mesh` as `strategy` needs, those of the first stages."""
    by_stage = np.moveaxis(mesh.devices, mesh.axis_names.index("stage"), 0)
    devices = by_stage.reshape(-1)[: strategy.num_devices]
    sizes = tuple(strategy.axis_sizes.values())
    return Mesh(devices.reshape(sizes), mesh.axis_names, axis_types=mesh.axis_types)


def _program(
    train: TrainStep, strategy: Strategy, mesh: Mesh, batch_shape: tuple[int, ...]
) -> Program:
    own = train.schedule if strategy.stage == train.strategy.stage else None
    step = make_train_step(train.model, optax.sgd(1e-3), strategy, mesh, schedule=own)
    batch = step.put(train.model.batch_entries().random(batch_shape))
    return compile_program(lambda: step.lower(batch_shape), step.init(jax.random.key(0)), batch)
