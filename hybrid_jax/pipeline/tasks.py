"""Tasks, what a schedule is made of, and the columns of NumPy arrays that hold them."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.placement import virtual_stages

Kind = Literal["F", "B", "W"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Task:
    """One microbatch's forward (F) or backward (B) through the layers of one virtual stage.

    A table with W tasks splits the backward (Qi et al. 2024, arXiv:2401.10241): its B computes the
    gradient of the input alone, W that of the weights, in any later tick or in the same.

    >>> print(Task("F", microbatch=3, virtual_stage=1))
    F of microbatch 3, virtual stage 1
    """

    kind: Kind
    microbatch: int
    virtual_stage: int

    def __str__(self) -> str:
        return f"{self.kind} of microbatch {self.microbatch}, virtual stage {self.virtual_stage}"


class Column(NamedTuple):
    """All tasks of one kind: int32 `[ticks, stages]`, microbatch -1 and chunk 0 where idle."""

    microbatch: np.ndarray
    chunk: np.ndarray


def idle_column(num_ticks: int, stages: int) -> Column:
    """Returns a column without tasks."""
    shape = (num_ticks, stages)
    return Column(np.full(shape, -1, np.int32), np.zeros(shape, np.int32))


def read_tasks(
    tasks: Sequence[Sequence[Iterable[Task]]], microbatches: int, placement: tuple[int, ...]
) -> dict[Kind, Column]:
    """Returns the columns of `tasks[tick][stage]`, one for each kind.

    Raises:
      UserError: something else than tasks, a task on a stage that does not have its layers, or two
        of one kind in one tick and stage; with the tick and stage.
    """
    stages = max(placement) + 1
    owned = virtual_stages(placement, stages)
    chunk_of = {int(virtual): chunk for row in owned for chunk, virtual in enumerate(row)}
    rows = [_stages_of(tick, row, stages) for tick, row in enumerate(_listed(tasks, "tasks"))]
    if not rows:
        raise UserError("tasks is empty: give one sequence of stages for each tick.")
    columns: dict[Kind, Column] = {kind: idle_column(len(rows), stages) for kind in KINDS}
    for tick, row in enumerate(rows):
        for stage, cell in enumerate(row):
            where = f"tick {tick}, stage {stage}"
            for task in _listed(cell, where):
                _check_task(task, where, stage, microbatches, placement)
                column = columns[task.kind]
                if column.microbatch[tick, stage] >= 0:
                    raise UserError(
                        f"{where}: {task} is the second {task.kind} there; a stage runs one of "
                        "each kind in a tick: move it to another tick."
                    )
                column.microbatch[tick, stage] = task.microbatch
                column.chunk[tick, stage] = chunk_of[task.virtual_stage]
    return columns


def _listed(value: Any, where: str) -> list[Any]:
    if isinstance(value, Task) or not isinstance(value, Iterable):
        raise UserError(
            f"{where}: {reprlib.repr(value)} must be a sequence: tasks[tick][stage] is a tuple of "
            "tasks, () where the stage is idle."
        )
    return list(value)


def _stages_of(tick: int, row: Any, stages: int) -> list[Any]:
    cells = _listed(row, f"tick {tick}")
    if len(cells) != stages:
        raise UserError(
            f"tick {tick}: it has {len(cells)} entries, but stages={stages}: give one tuple of "
            "tasks for each stage, () where it is idle."
        )
    return cells


def _check_task(
    task: Any, where: str, stage: int, microbatches: int, placement: tuple[int, ...]
) -> None:
    if not isinstance(task, Task):
        raise UserError(
            f"{where}: {reprlib.repr(task)} is no Task: write Task(kind, microbatch, "
            "virtual_stage)."
        )
    if task.kind not in KINDS:
        raise UserError(f"{where}: kind={task.kind!r} must be one of {', '.join(KINDS)}.")
    limits = {"microbatch": microbatches, "virtual_stage": len(placement)}
    for field, limit in limits.items():
        value = getattr(task, field)
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or not 0 <= value < limit:
            raise UserError(
                f"{where}: {field}={value!r} of a {task.kind} must be a whole number from 0 to "
                f"{limit - 1}."
            )
    if placement[task.virtual_stage] != stage:
        raise UserError(
            f"{where}: {task} runs on the wrong stage: the placement puts its layers on stage "
            f"{placement[task.virtual_stage]}."
        )
