"""The type of a pipeline schedule: tables of tasks, whoever built them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.placement import check_placement, ring, virtual_stages
from hybrid_jax.pipeline.simulate import Simulation, simulate
from hybrid_jax.pipeline.slots import assign_slots
from hybrid_jax.pipeline.tasks import KINDS, Column, Kind, Task, idle_column, read_tasks
from hybrid_jax.pipeline.validate import validate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Segment:
    """A run of ticks, `start` to `stop` exclusive, that have the same kinds of slots.

    Attributes:
      forward, backward: whether any stage has an F, a B or W, in these ticks.
      head: whether the loss head runs in all, some or none of these ticks.
    """

    start: int
    stop: int
    forward: bool
    backward: bool
    head: Literal["all", "some", "none"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A pipeline schedule: per tick and stage at most one task of each kind, F, B and W.

    Layers are cut into `stages * chunks` virtual stages, and `placement` says which stage has
    which. Within a tick the order is F, loss head, B, W; then every stage sends to its neighbours,
    who can use what they got from the next tick on. `schedule` builds the named ones, `from_tasks`
    any other.

    Attributes:
      name: `gpipe`, `1f1b`, `interleaved`, `forward_only`, or a user's own.
      stages, microbatches, chunks: the sizes S, M and v.
      placement: the stage of each virtual stage, in the order of the layers; the named schedules
        have the ring, where stage `s` owns the virtual stages `chunk * stages + s`.
      f_microbatch, f_chunk: int32 `[ticks, stages]`, what the F slot runs; microbatch -1 and chunk
        0 where the stage is idle. A chunk counts the virtual stages of its stage.
      f_slot: int32 `[ticks, stages]`, the ring slot the F writes; for an idle stage in a tick where
        another has an F, a slot that holds nothing alive.
      b_microbatch, b_chunk, b_slot: the same for the B slot; `b_slot` is 0 where idle.
      w_microbatch, w_chunk, w_slot: the same for W; all idle unless the backward is split.
      head: int32 `[ticks]`, the microbatch whose loss head runs in that tick, or -1.
      num_slots: ring slots the neediest stage needs.
    """

    name: str
    stages: int
    microbatches: int
    chunks: int
    placement: tuple[int, ...]
    f_microbatch: np.ndarray
    f_chunk: np.ndarray
    f_slot: np.ndarray
    b_microbatch: np.ndarray
    b_chunk: np.ndarray
    b_slot: np.ndarray
    w_microbatch: np.ndarray
    w_chunk: np.ndarray
    w_slot: np.ndarray
    head: np.ndarray
    num_slots: int

    @classmethod
    def from_tasks(
        cls,
        tasks: Sequence[Sequence[Iterable[Task]]],
        *,
        stages: int,
        microbatches: int,
        chunks: int = 1,
        placement: Sequence[int] | None = None,
        name: str = "custom",
    ) -> Schedule:
        """Returns the validated table of `tasks[tick][stage]`, each a tuple of tasks.

        Ring slots and loss heads follow from the tasks: a head runs in the tick of the last virtual
        stage's B, or of its F in a table named `forward_only`.

        >>> F = lambda microbatch, stage: Task("F", microbatch, stage)
        >>> B = lambda microbatch, stage: Task("B", microbatch, stage)
        >>> tasks = [
        ...     [(F(0, 0),), ()],
        ...     [(F(1, 0),), (F(0, 1), B(0, 1))],
        ...     [(B(0, 0),), (F(1, 1), B(1, 1))],
        ...     [(B(1, 0),), ()],
        ... ]
        >>> Schedule.from_tasks(tasks, stages=2, microbatches=2, name="by hand").print()
        by hand: 2 stages, 2 microbatches, 4 ticks, bubble 50.0 % of the work
        tick      0      1      2   3
        stage 0  F0  F1 ··  ·· B0  B1
        stage 1  ··  F0 B0  F1 B1  ··

        Args:
          tasks: `()` where a stage is idle.
          stages, microbatches, chunks: the sizes S, M and v.
          placement: the stage of each of the `stages * chunks` virtual stages; None: the ring.
          name: shown in print and plot.

        Raises:
          UserError: the tasks are no pipeline of these sizes, with the tick and stage: see
            `hybrid_jax.pipeline.validate`.
        """
        check_sizes(stages, microbatches, chunks)
        placed = ring(stages, chunks) if placement is None else placement
        placed = check_placement(placed, stages, chunks)
        columns = read_tasks(tasks, microbatches, placed)
        table = cls.from_columns(name, microbatches, columns, placed)
        table.validate()
        return table

    @classmethod
    def from_columns(
        cls,
        name: str,
        microbatches: int,
        columns: dict[Kind, Column],
        placement: tuple[int, ...],
    ) -> Schedule:
        """Returns the table of tasks given as columns, with its heads and slots, not validated.

        Every table is built here: the named ones, whose tests prove them right, and the user's.
        """
        forward = columns["F"]
        num_ticks, stages = forward.microbatch.shape
        chunks = len(placement) // stages
        idle = idle_column(num_ticks, stages)
        backward, weights = columns.get("B", idle), columns.get("W", idle)
        trains = bool((backward.microbatch >= 0).any() or (weights.microbatch >= 0).any())
        f_slot = b_slot = w_slot = np.zeros((num_ticks, stages), np.int32)
        num_slots = 1
        if trains:
            f_slot, (b_slot, w_slot), num_slots = assign_slots(
                forward, (backward, weights), microbatches, chunks
            )
        ends = backward if trains else forward
        at_end = ends.chunk[:, placement[-1]] == chunks - 1
        head = np.where(at_end, ends.microbatch[:, placement[-1]], -1).astype(np.int32)
        sizes = (name, stages, microbatches, chunks, placement)
        return cls(*sizes, *forward, f_slot, *backward, b_slot, *weights, w_slot, head, num_slots)

    @property
    def num_ticks(self) -> int:
        """Number of ticks from the first task to the last."""
        return len(self.head)

    @property
    def splits_backward(self) -> bool:
        """Whether there are W tasks, so that a B computes the gradient of its input alone."""
        return bool((self.w_microbatch >= 0).any())

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of tasks that the table has, in the order in which a tick runs them."""
        return tuple(kind for kind in KINDS if (self.column(kind).microbatch >= 0).any())

    @property
    def fused(self) -> bool:
        """Whether every F shares its tick and stage with its own B: residuals need no ring."""
        return bool(
            np.array_equal(self.f_microbatch, self.b_microbatch)
            and np.array_equal(self.f_chunk, self.b_chunk)
            and not self.splits_backward
        )

    @property
    def stores_outputs(self) -> bool:
        """Whether some head runs later than its F, so that the output must wait in the slot."""
        end = self.placement[-1]
        last = self.f_chunk[:, end] == self.chunks - 1
        return bool(np.any((self.head >= 0) & ~(last & (self.f_microbatch[:, end] == self.head))))

    def column(self, kind: Kind) -> Column:
        """Returns all tasks of one kind."""
        if kind == "F":
            return Column(self.f_microbatch, self.f_chunk)
        if kind == "B":
            return Column(self.b_microbatch, self.b_chunk)
        return Column(self.w_microbatch, self.w_chunk)

    def tasks(self) -> tuple[tuple[tuple[Task, ...], ...], ...]:
        """Returns `tasks[tick][stage]`, from which `from_tasks` builds this table again.

        >>> from hybrid_jax.pipeline.schedules import schedule
        >>> schedule("1f1b", stages=2, microbatches=3).tasks()[1][0]
        (Task(kind='F', microbatch=1, virtual_stage=0),)
        """
        owned = virtual_stages(self.placement, self.stages)
        cells = [[[] for _ in range(self.stages)] for _ in range(self.num_ticks)]
        for kind in self.kinds:
            microbatches, chunks = self.column(kind)
            for tick, stage in np.argwhere(microbatches >= 0):
                virtual = int(owned[stage, chunks[tick, stage]])
                cells[tick][stage].append(Task(kind, int(microbatches[tick, stage]), virtual))
        return tuple(tuple(map(tuple, row)) for row in cells)

    def segments(self) -> tuple[Segment, ...]:
        """Returns the maximal runs of ticks with the same kinds of slots, in order.

        >>> from hybrid_jax.pipeline.schedules import schedule
        >>> for segment in schedule("1f1b", stages=4, microbatches=8).segments():
        ...     print(segment)
        Segment(start=0, stop=3, forward=True, backward=False, head='none')
        Segment(start=3, stop=11, forward=True, backward=True, head='all')
        Segment(start=11, stop=14, forward=False, backward=True, head='none')
        """
        forward = np.any(self.f_microbatch >= 0, axis=1)
        backward = np.any((self.b_microbatch >= 0) | (self.w_microbatch >= 0), axis=1)
        kind = 2 * forward + backward
        starts = np.flatnonzero(np.diff(kind, prepend=-1)).tolist()
        segments = []
        for start, stop in zip(starts, [*starts[1:], self.num_ticks], strict=True):
            heads = self.head[start:stop] >= 0
            head = "all" if heads.all() else "some" if heads.any() else "none"
            segments.append(Segment(start, stop, bool(forward[start]), bool(backward[start]), head))
        return tuple(segments)

    def validate(self) -> None:
        """Proves the table right, or raises a UserError with the tick and stage that are wrong."""
        validate(self)

    def simulate(
        self,
        f_cost: float = 1.0,
        b_cost: float | None = None,
        head_cost: float = 0.0,
        w_cost: float | None = None,
    ) -> Simulation:
        """Returns the time the schedule takes; see `hybrid_jax.pipeline.simulate`.

        >>> from hybrid_jax.pipeline.schedules import schedule
        >>> schedule("interleaved", stages=4, microbatches=8, chunks=2).simulate().bubble_fraction
        0.1875
        """
        return simulate(self, f_cost, b_cost, head_cost, w_cost)

    def print(self, file: TextIO | None = None) -> None:
        """Prints the timeline, one row per stage: in colour on a terminal, else as plain text.

        >>> from hybrid_jax.pipeline.schedules import schedule
        >>> schedule("1f1b", stages=2, microbatches=3).print()
        1f1b: 2 stages, 3 microbatches, 5 ticks, bubble 33.3 % of the work
        tick      0      1      2      3   4
        stage 0  F0  F1 ··  F2 B0  ·· B1  B2
        stage 1  ··  F0 B0  F1 B1  F2 B2  ··
        """
        from hybrid_jax.pipeline.timeline import print_timeline

        print_timeline(self, file)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        f_cost: float = 1.0,
        b_cost: float | None = None,
        head_cost: float = 0.0,
        w_cost: float | None = None,
    ) -> Axes:
        """Draws the timeline with matplotlib; see `hybrid_jax.pipeline.picture`."""
        from hybrid_jax.pipeline.picture import plot_timeline

        costs = {"f_cost": f_cost, "b_cost": b_cost, "head_cost": head_cost, "w_cost": w_cost}
        return plot_timeline(self, ax, **costs)


def check_sizes(stages: int, microbatches: int, chunks: int) -> None:
    """Raises a UserError where a size is no whole number or less than 1."""
    for field, value in (("stages", stages), ("microbatches", microbatches), ("chunks", chunks)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise UserError(f"{field}={value!r} must be a whole number, at least 1.")
        if value < 1:
            raise UserError(f"{field}={value} must be at least 1: use {field}=1 or more")
