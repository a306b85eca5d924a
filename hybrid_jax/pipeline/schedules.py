"""Pipeline schedules as data: which stage runs which microbatch and chunk in which tick.

A schedule is a set of NumPy tables. Pure Python builds them, no device is needed to test, print or
draw them, and one executor runs them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

import numpy as np

from hybrid_jax.errors import UserError, nearest
from hybrid_jax.pipeline.simulate import Simulation, simulate
from hybrid_jax.pipeline.slots import assign_slots
from hybrid_jax.pipeline.validate import validate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEDULES = ("gpipe", "1f1b", "interleaved")


@dataclass(frozen=True)
class Segment:
    """A run of ticks, `start` to `stop` exclusive, that have the same kinds of slots.

    Attributes:
      forward, backward: whether any stage has an F, a B, in these ticks.
      head: whether the loss head runs in all, some or none of these ticks.
    """

    start: int
    stop: int
    forward: bool
    backward: bool
    head: Literal["all", "some", "none"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A pipeline schedule: per tick and stage at most one forward (F) and one backward (B).

    Layers are cut into `stages * chunks` virtual stages; stage `s` owns those numbered
    `chunk * stages + s`. Within a tick the order is F, loss head, B; then every stage sends to its
    neighbours, who use what they got in the next tick.

    Attributes:
      name: `gpipe`, `1f1b`, `interleaved`, or `forward_only`.
      stages, microbatches, chunks: the sizes S, M and v.
      f_microbatch, f_chunk: int32 `[ticks, stages]`, what the F slot runs; microbatch -1 and chunk
        0 where the stage is idle.
      f_slot: int32 `[ticks, stages]`, the ring slot the F writes; for an idle stage in a tick where
        another has an F, a slot that holds nothing alive.
      b_microbatch, b_chunk, b_slot: the same for the B slot; `b_slot` is 0 where idle.
      head: int32 `[ticks]`, the microbatch whose loss head runs in that tick, or -1.
      num_slots: ring slots the neediest stage needs.
    """

    name: str
    stages: int
    microbatches: int
    chunks: int
    f_microbatch: np.ndarray
    f_chunk: np.ndarray
    f_slot: np.ndarray
    b_microbatch: np.ndarray
    b_chunk: np.ndarray
    b_slot: np.ndarray
    head: np.ndarray
    num_slots: int

    @property
    def num_ticks(self) -> int:
        """Number of ticks from the first F to the last B."""
        return len(self.head)

    @property
    def fused(self) -> bool:
        """Whether every F shares its tick and stage with its own B: residuals need no ring."""
        return bool(
            np.array_equal(self.f_microbatch, self.b_microbatch)
            and np.array_equal(self.f_chunk, self.b_chunk)
        )

    @property
    def stores_outputs(self) -> bool:
        """Whether some head runs later than its F, so that the output must wait in the slot."""
        last = self.f_chunk[:, -1] == self.chunks - 1
        return bool(np.any((self.head >= 0) & ~(last & (self.f_microbatch[:, -1] == self.head))))

    def segments(self) -> tuple[Segment, ...]:
        """Returns the maximal runs of ticks with the same kinds of slots, in order.

        >>> for segment in schedule("1f1b", stages=4, microbatches=8).segments():
        ...     print(segment)
        Segment(start=0, stop=3, forward=True, backward=False, head='none')
        Segment(start=3, stop=11, forward=True, backward=True, head='all')
        Segment(start=11, stop=14, forward=False, backward=True, head='none')
        """
        forward = np.any(self.f_microbatch >= 0, axis=1)
        backward = np.any(self.b_microbatch >= 0, axis=1)
        kind = 2 * forward + backward
        starts = np.flatnonzero(np.diff(kind, prepend=-1)).tolist()
        segments = []
        for start, stop in zip(starts, [*starts[1:], self.num_ticks], strict=True):
            heads = self.head[start:stop] >= 0
            head = "all" if heads.all() else "some" if heads.any() else "none"
            segments.append(Segment(start, stop, bool(forward[start]), bool(backward[start]), head))
        return tuple(segments)

    def validate(self) -> None:
        """Proves the table right, or raises ValueError with the tick and stage that are wrong."""
        validate(self)

    def simulate(
        self, f_cost: float = 1.0, b_cost: float = 2.0, head_cost: float = 0.0
    ) -> Simulation:
        """Returns the time the schedule takes; see `hybrid_jax.pipeline.simulate`.

        >>> schedule("interleaved", stages=4, microbatches=8, chunks=2).simulate().bubble_fraction
        0.1875
        """
        return simulate(self, f_cost, b_cost, head_cost)

    def print(self, file: TextIO | None = None) -> None:
        """Prints the timeline, one row per stage: in colour on a terminal, else as plain text.

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
        b_cost: float = 2.0,
        head_cost: float = 0.0,
    ) -> Axes:
        """Draws the timeline with matplotlib; see `hybrid_jax.pipeline.picture`."""
        from hybrid_jax.pipeline.picture import plot_timeline

        return plot_timeline(self, ax, f_cost=f_cost, b_cost=b_cost, head_cost=head_cost)


def schedule(name: str, stages: int, microbatches: int, chunks: int = 1) -> Schedule:
    """Returns the table of a named schedule.

    * `gpipe`: all forwards, then all backwards (Huang et al. 2019, arXiv:1811.06965). Every
      microbatch is in flight at once, so memory grows with `microbatches`.
    * `1f1b`: in lockstep, one forward and one backward per tick; at most `2 * stages - 1`
      microbatches in flight, and the same bubble (Narayanan et al. 2021, arXiv:2104.04473, §2.2).
    * `interleaved`: 1F1B where each stage owns `chunks` chunks of layers, which divides the bubble
      by `chunks` for as many times the messages between stages (ibid.).

    Args:
      stages: number of stages S.
      microbatches: number of microbatches M, fewer than S included.
      chunks: chunks of layers per stage; more than 1 for `interleaved` only.

    Raises:
      UserError: an unknown name or sizes for which the schedule does not exist.
    """
    if name not in SCHEDULES:
        choices = ", ".join(SCHEDULES)
        raise UserError(
            f"schedule={name!r} is unknown: choose one of {choices}.{nearest(name, SCHEDULES)}"
        )
    _check_sizes(stages, microbatches, chunks)
    if name == "interleaved":
        _check_interleaved(stages, chunks)
        _check_groups(stages, microbatches)
    elif chunks > 1:
        raise UserError(
            f"chunks={chunks} with schedule={name!r} must be 1: only schedule='interleaved' cuts a "
            f"stage into chunks"
        )
    forwards = chunks * microbatches
    first_backward = forwards + stages - 1 if name == "gpipe" else chunks * stages - 1
    return _build(name, stages, microbatches, chunks, first_backward)


def forward_only(stages: int, microbatches: int, chunks: int = 1) -> Schedule:
    """Returns the table of an evaluation: the forwards of 1F1B (interleaved for `chunks` > 1) only.

    >>> forward_only(stages=2, microbatches=3).print()
    forward_only: 2 stages, 3 microbatches, 4 ticks, bubble 33.3 % of the work
    tick      0   1   2   3
    stage 0  F0  F1  F2  ··
    stage 1  ··  F0  F1  F2

    Raises:
      UserError: a size is not positive, or `chunks` > 1 and `microbatches` is not a multiple of
        `stages`.
    """
    _check_sizes(stages, microbatches, chunks)
    if chunks > 1:
        _check_groups(stages, microbatches)
    return _build("forward_only", stages, microbatches, chunks, first_backward=None)


def _build(
    name: str, stages: int, microbatches: int, chunks: int, first_backward: int | None
) -> Schedule:
    """Builds the tables (DESIGN §2.2); `first_backward`: the tick of the last stage's first B.

    The k-th forward runs at stage d in tick k + d, the k-th backward `first_backward` ticks later
    and up the pipe: in tick first_backward + k + (S-1-d). Microbatches go in groups of S through
    all chunks, so when chunk c of a microbatch leaves the last stage, the first stage's next tick
    is for chunk c+1 of that microbatch.
    """
    k = np.arange(chunks * microbatches)
    stage = np.arange(stages)
    chunk = k % (stages * chunks) // stages
    microbatch = k // (stages * chunks) * stages + k % stages
    num_ticks = (first_backward or 0) + len(k) + stages - 1

    def table(ticks: np.ndarray, values: np.ndarray, idle: int) -> np.ndarray:
        filled = np.full((num_ticks, stages), idle, np.int32)
        filled[ticks, stage] = values[:, None]
        return filled

    f_tick = k[:, None] + stage
    f_microbatch, f_chunk = table(f_tick, microbatch, -1), table(f_tick, chunk, 0)
    if first_backward is None:
        b_microbatch, b_chunk = np.full_like(f_microbatch, -1), np.zeros_like(f_chunk)
        f_slot, b_slot, num_slots = np.zeros_like(f_chunk), np.zeros_like(f_chunk), 1
        ends_microbatch, ends_chunk = f_microbatch[:, -1], f_chunk[:, -1]
    else:
        b_tick = first_backward + k[:, None] + (stages - 1 - stage)
        b_microbatch = table(b_tick, microbatch, -1)
        b_chunk = table(b_tick, chunks - 1 - chunk, 0)
        f_slot, b_slot, num_slots = assign_slots(f_microbatch, f_chunk, b_microbatch, b_chunk)
        ends_microbatch, ends_chunk = b_microbatch[:, -1], b_chunk[:, -1]
    head = np.where(ends_chunk == chunks - 1, ends_microbatch, -1).astype(np.int32)
    return Schedule(
        name=name,
        stages=stages,
        microbatches=microbatches,
        chunks=chunks,
        f_microbatch=f_microbatch,
        f_chunk=f_chunk,
        f_slot=f_slot,
        b_microbatch=b_microbatch,
        b_chunk=b_chunk,
        b_slot=b_slot,
        head=head,
        num_slots=num_slots,
    )


def _check_sizes(stages: int, microbatches: int, chunks: int) -> None:
    for field, value in (("stages", stages), ("microbatches", microbatches), ("chunks", chunks)):
        if value < 1:
            raise UserError(f"{field}={value} must be at least 1: use {field}=1 or more")


def _check_interleaved(stages: int, chunks: int) -> None:
    if stages < 2:
        raise UserError(
            f"stages={stages} with schedule='interleaved' must be at least 2: use more stages, or "
            f"schedule='1f1b'"
        )
    if chunks < 2:
        raise UserError(
            f"chunks={chunks} with schedule='interleaved' must be at least 2: use chunks=2, or "
            f"schedule='1f1b', which has one chunk per stage"
        )


def _check_groups(stages: int, microbatches: int) -> None:
    """The interleaved table sends groups of `stages` microbatches through each chunk in turn."""
    if microbatches % stages:
        below = microbatches // stages * stages
        choices = f"{below} or {below + stages}" if below else f"{stages}"
        raise UserError(
            f"microbatches={microbatches} with chunks > 1 must be a multiple of stages={stages}: "
            f"use {choices}, or schedule='1f1b' with chunks=1, which takes any number"
        )
