"""The named schedules, each a closed form that places forwards and backwards in ticks."""

from __future__ import annotations

import numpy as np

from hybrid_jax.errors import UserError, nearest
from hybrid_jax.pipeline.placement import ring
from hybrid_jax.pipeline.task_table import Schedule, Segment, check_sizes
from hybrid_jax.pipeline.tasks import Column, Kind, idle_column

__all__ = ["SCHEDULES", "Schedule", "Segment", "forward_only", "schedule"]

SCHEDULES = ("gpipe", "1f1b", "interleaved")


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
    check_sizes(stages, microbatches, chunks)
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
    check_sizes(stages, microbatches, chunks)
    if chunks > 1:
        _check_groups(stages, microbatches)
    return _build("forward_only", stages, microbatches, chunks, first_backward=None)


def _build(
    name: str, stages: int, microbatches: int, chunks: int, first_backward: int | None
) -> Schedule:
    """Builds the tables in closed form; `first_backward`: the tick of the last stage's first B.

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

    def column(ticks: np.ndarray, chunk: np.ndarray) -> Column:
        filled = idle_column(num_ticks, stages)
        for table, values in zip(filled, (microbatch, chunk), strict=True):
            table[ticks, stage] = values[:, None]
        return filled

    columns: dict[Kind, Column] = {"F": column(k[:, None] + stage, chunk)}
    if first_backward is not None:
        b_tick = first_backward + k[:, None] + (stages - 1 - stage)
        columns["B"] = column(b_tick, chunks - 1 - chunk)
    return Schedule.from_columns(name, microbatches, columns, ring(stages, chunks))


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
