"""Timing several compiled train steps against each other on a machine that is not quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

PyTree = Any


class StepTime(NamedTuple):
    """What one step took, and the loss before its update.

    Attributes:
      wall_seconds: until all its results were there.
      cpu_seconds: of the whole process: all threads, so all virtual devices.
      loss: mean over the batch.
    """

    wall_seconds: float
    cpu_seconds: float
    loss: float


class Timed(Protocol):
    """What `measure` times: a train step, in this process or in another one."""

    def timed_step(self) -> StepTime:
        """Makes one update, waits for all of it and returns what it took."""
        ...


@dataclass
class Program:
    """A compiled train step, with its state and its batch on its devices.

    Attributes:
      compiled: (state, batch) -> (state, metrics), the state donated.
      state: replaced by every step.
      batch: the same at every step.
      compile_seconds: wall time of tracing, lowering and compiling. JAX's persistent compilation
        cache shortens it, where that is on and has the program.
    """

    compiled: jax.stages.Compiled
    state: PyTree
    batch: PyTree
    compile_seconds: float

    def step(self) -> dict[str, jax.Array]:
        """Makes one update, waits for all of it and returns its metrics."""
        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return metrics

    def timed_step(self) -> StepTime:
        """Makes one update, waits for all of it and returns what it took."""
        wall, cpu = time.perf_counter(), time.process_time()
        metrics = self.step()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return StepTime(wall, cpu, float(metrics["loss"]))


def compile_program(lower: Callable[[], Any], state: PyTree, batch: PyTree) -> Program:
    """Returns the program that `lower()` lowers, compiled."""
    start = time.perf_counter()
    compiled = lower().compile()
    return Program(compiled, state, batch, time.perf_counter() - start)


@dataclass(frozen=True)
class Times:
    """What the rounds took.

    Attributes:
      wall_seconds: [rounds, programs].
      cpu_seconds: [rounds, programs], of the program's whole process, so all virtual devices.
      losses: [programs], of the first update.
    """

    wall_seconds: np.ndarray
    cpu_seconds: np.ndarray
    losses: tuple[float, ...]

    def ratio(self, program: int, baseline: int) -> tuple[float, float]:
        """Medians over the rounds of `program`'s (wall, CPU) seconds by `baseline`'s."""
        wall, cpu = self.wall_seconds, self.cpu_seconds
        return (
            float(np.median(wall[:, program] / wall[:, baseline])),
            float(np.median(cpu[:, program] / cpu[:, baseline])),
        )


def measure(programs: Sequence[Timed], rounds: int) -> Times:
    """Times the programs round robin: in every round, one step of each in turn.

    Speed drifts on a shared machine (other processes, clocks, heat) over seconds and minutes.
    Programs timed one after the other would each see another machine; interleaved, those of one
    round see nearly the same one, and ratios within a round, by their median, are free of the
    drift. A first round, which is not timed, warms caches and gives the losses.
    """
    losses = tuple(program.timed_step().loss for program in programs)
    wall, cpu = np.zeros((2, rounds, len(programs)))
    for row in range(rounds):
        for column, program in enumerate(programs):
            wall[row, column], cpu[row, column], _ = program.timed_step()
    return Times(wall, cpu, losses)
