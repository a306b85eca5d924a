"""Tables by list scheduling: each stage runs, tick by tick, the first task that may run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

from hybrid_jax.pipeline.tasks import KINDS, Task


def list_schedule(
    stages: int,
    microbatches: int,
    placement: Sequence[int],
    prefer: Callable[[int, list[Task], set[Task]], Task | None],
    *,
    split: bool = False,
) -> list[list[tuple[Task, ...]]]:
    """Returns `tasks[tick][stage]`, at most one task in each.

    Args:
      prefer: (stage, ready, done) -> which of the `ready` tasks to run, or None to wait.
      split: whether there are W tasks.
    """
    kinds = "FBW" if split else "FB"
    left = {
        Task(kind, microbatch, virtual)
        for kind in kinds
        for microbatch in range(microbatches)
        for virtual in range(len(placement))
    }
    done: set[Task] = set()
    ticks = []
    while left:
        ready = in_order(task for task in left if needs(task, len(placement)) <= done)
        row = []
        for stage in range(stages):
            own = [task for task in ready if placement[task.virtual_stage] == stage]
            chosen = prefer(stage, own, done) if own else None
            row.append(() if chosen is None else (chosen,))
        done = done.union(*row)
        left -= done
        ticks.append(row)
    return ticks


def needs(task: Task, num_virtual: int) -> set[Task]:
    """The tasks that must run before this one."""
    kind, microbatch, virtual = task.kind, task.microbatch, task.virtual_stage
    if kind == "F":
        return {Task("F", microbatch, virtual - 1)} if virtual else set()
    if kind == "W":
        return {Task("B", microbatch, virtual)}
    needed = {Task("F", microbatch, virtual)}
    if virtual < num_virtual - 1:
        needed.add(Task("B", microbatch, virtual + 1))
    return needed


def zb_h1(stages: int, microbatches: int) -> list[list[tuple[Task, ...]]]:
    """ZB-H1 of Qi et al. 2024 (arXiv:2401.10241, section 2.1): 1F1B whose W fill its bubble.

    Stage s alternates F and B once it is `stages - s` microbatches ahead; W runs where neither can,
    or where as many microbatches as stages wait for theirs.
    """

    def prefer(stage: int, ready: list[Task], done: set[Task]) -> Task | None:
        ran = {
            kind: sum(t.kind == kind and t.virtual_stage == stage for t in done) for kind in KINDS
        }
        first = {task.kind: task for task in reversed(in_order(ready))}
        ahead = ran["F"] - ran["B"]
        if ahead < stages - stage and ran["F"] < microbatches:
            full = ran["F"] - ran["W"] == stages
            order = "WB" if full else "FWB"
        else:
            order = "BW"
        return next((first[kind] for kind in order if kind in first), None)

    return list_schedule(stages, microbatches, range(stages), prefer, split=True)


def in_order(tasks: Iterable[Task]) -> list[Task]:
    return sorted(tasks, key=lambda task: (task.microbatch, task.virtual_stage, task.kind))


def random_lockstep(
    stages: int, microbatches: int, chunks: int, random: Random
) -> list[list[tuple[Task, ...]]]:
    """Tasks in any order in which no message waits: what the executor runs, however odd."""
    num_virtual = stages * chunks
    taken: dict[tuple[int, int, str], Task] = {}

    def place(kind: str, microbatch: int, start: int) -> int:
        """Runs one task of all virtual stages from the first free tick on; returns that tick."""
        path = range(num_virtual) if kind == "F" else reversed(range(num_virtual))
        virtuals = list(path)
        while any((start + i, v % stages, kind) in taken for i, v in enumerate(virtuals)):
            start += 1
        for i, virtual in enumerate(virtuals):
            taken[start + i, virtual % stages, kind] = Task(kind, microbatch, virtual)
        return start

    for microbatch in random.sample(range(microbatches), microbatches):
        begins = place("F", microbatch, random.randrange(num_virtual * microbatches))
        place("B", microbatch, begins + num_virtual - 1 + random.randrange(2 * num_virtual))
    ticks = range(max(tick for tick, _, _ in taken) + 1)
    return [
        [
            tuple(taken[tick, stage, kind] for kind in "FB" if (tick, stage, kind) in taken)
            for stage in range(stages)
        ]
        for tick in ticks
    ]
