"""Tables of a user's own tasks: equal to the named ones, right, or refused with the place."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_schedule import list_schedule, needs

import hybrid_jax as hj
from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.schedules import Schedule, schedule
from hybrid_jax.pipeline.tasks import KINDS, Task

ARRAYS = [f"{kind.lower()}_{part}" for kind in KINDS for part in ("microbatch", "chunk", "slot")]


def F(microbatch, virtual_stage):
    return Task("F", microbatch, virtual_stage)


def B(microbatch, virtual_stage):
    return Task("B", microbatch, virtual_stage)


# 1F1B of 2 stages and 3 microbatches.
BY_HAND = [
    [(F(0, 0),), ()],
    [(F(1, 0),), (F(0, 1), B(0, 1))],
    [(F(2, 0), B(0, 0)), (F(1, 1), B(1, 1))],
    [(B(1, 0),), (F(2, 1), B(2, 1))],
    [(B(2, 0),), ()],
]


def check_equal(first: Schedule, second: Schedule):
    for name in (*ARRAYS, "head"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), name)
    for name in ("name", "stages", "microbatches", "chunks", "placement", "num_slots", "fused"):
        assert getattr(first, name) == getattr(second, name), name
    assert first.segments() == second.segments()


def rebuilt(table: Schedule, tasks) -> Schedule:
    sizes = {name: getattr(table, name) for name in ("stages", "microbatches", "chunks")}
    return Schedule.from_tasks(tasks, **sizes, placement=table.placement, name=table.name)


def test_a_table_by_hand_is_1f1b():
    table = hj.Schedule.from_tasks(BY_HAND, stages=2, microbatches=3, name="1f1b")
    check_equal(table, schedule("1f1b", stages=2, microbatches=3))


@settings(deadline=None)
@given(st.from_type(Schedule))
def test_every_named_table_is_built_again_from_its_tasks(table):
    check_equal(rebuilt(table, table.tasks()), table)


@st.composite
def scheduled(draw):
    """Tasks of any size and placement, in an order that respects what each needs."""
    stages, chunks = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    microbatches = draw(st.integers(1, 5))
    placement = draw(st.permutations(list(range(stages)) * chunks))
    random = draw(st.randoms(use_true_random=False))

    def prefer(stage, ready, done):
        return random.choice([*ready, None]) if random.random() < 0.9 else None

    tasks = list_schedule(stages, microbatches, placement, prefer, split=draw(st.booleans()))
    return tasks, {
        "stages": stages,
        "microbatches": microbatches,
        "chunks": chunks,
        "placement": placement,
    }


@settings(deadline=None)
@given(scheduled())
def test_any_order_that_respects_what_tasks_need_is_right(drawn):
    tasks, sizes = drawn
    table = Schedule.from_tasks(tasks, **sizes)
    assert table.tasks() == tuple(map(tuple, tasks))
    assert sum(segment.stop - segment.start for segment in table.segments()) == len(tasks)
    in_flight = [held(tasks, stage) for stage in range(table.stages)]
    assert max(in_flight) <= table.num_slots <= max(in_flight) + 1  # one for garbage
    work = {"F": 1.0, "B": 2.0, "W": 4.0}
    busy = table.simulate(1.0, 2.0, w_cost=4.0).busy * table.chunks
    for stage in range(table.stages):
        own = itertools.chain.from_iterable(row[stage] for row in tasks)
        np.testing.assert_allclose(busy[stage], sum(work[task.kind] for task in own))


def held(tasks, stage) -> int:
    """The most residuals that wait on a stage in one tick."""
    last = max((task.kind for row in tasks for task in row[stage]), key="FBW".index)
    most = now = 0
    for row in tasks:
        now += sum(task.kind == "F" for task in row[stage])
        most = max(most, now)
        now -= sum(task.kind == last for task in row[stage])
    return most


@settings(deadline=None, max_examples=300)
@given(scheduled(), st.data())
def test_a_wrong_table_is_refused_with_its_place(drawn, data):
    tasks, sizes = drawn
    wrong = [[list(cell) for cell in row] for row in tasks]
    busy = [(t, s) for t, row in enumerate(tasks) for s, cell in enumerate(row) if cell]
    tick, stage = data.draw(st.sampled_from(busy))
    other = data.draw(st.integers(0, len(tasks) - 1))
    change = data.draw(st.sampled_from(["drop", "repeat", "move", "microbatch", "virtual", "kind"]))
    task = wrong[tick][stage].pop()
    kind, microbatch, virtual = task.kind, task.microbatch, task.virtual_stage
    if change == "repeat":
        wrong[tick][stage].append(task)
    if change in ("repeat", "move"):
        wrong[other][stage].append(task)
    if change == "microbatch":
        microbatch = data.draw(st.integers(-1, sizes["microbatches"]))
    if change == "virtual":
        virtual = data.draw(st.integers(-1, len(sizes["placement"])))
    if change == "kind":
        kind = data.draw(st.sampled_from(["F", "B", "W", "X"]))
    if change in ("microbatch", "virtual", "kind"):
        wrong[tick][stage].append(Task(kind, microbatch, virtual))
    if is_right(wrong, sizes):
        Schedule.from_tasks(wrong, **sizes)
        return
    with pytest.raises(UserError, match=r"stage \d+: .*|tick \d+, stage \d+: ") as caught:
        Schedule.from_tasks(wrong, **sizes)
    message = str(caught.value)
    assert "\n" not in message
    assert "runs in no tick" in message or message.startswith("tick ")


def is_right(tasks, sizes) -> bool:
    """Whether all tasks run once, where they belong, after what they need: by brute force."""
    placement = sizes["placement"]
    tick_of = {}
    for tick, row in enumerate(tasks):
        for stage, cell in enumerate(row):
            if len({task.kind for task in cell}) < len(cell):
                return False
            for task in cell:
                known = 0 <= task.virtual_stage < len(placement)
                if task in tick_of or not known or placement[task.virtual_stage] != stage:
                    return False
                tick_of[task] = tick
    kinds = "FBW" if any(task.kind == "W" for task in tick_of) else "FB"
    microbatches = range(sizes["microbatches"])
    everything = {Task(*t) for t in itertools.product(kinds, microbatches, range(len(placement)))}
    return tick_of.keys() == everything and all(
        # On its own virtual stage a task may share the tick of what it needs.
        tick_of[need] < tick_of[task] + (need.virtual_stage == task.virtual_stage)
        for task in everything
        for need in needs(task, len(placement))
    )


def with_cell(tick, stage, cell):
    return [
        [cell if (t, s) == (tick, stage) else old for s, old in enumerate(row)]
        for t, row in enumerate(BY_HAND)
    ]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (with_cell(0, 0, ()), "stage 0: F of microbatch 0, chunk 0 runs in no tick"),
        (with_cell(0, 1, (F(0, 1),)), "tick 1, stage 1: F of microbatch 0, chunk 0 runs again"),
        (with_cell(0, 1, (F(0, 0),)), "tick 0, stage 1: F of .* 0 runs on the wrong stage: .* 0"),
        (with_cell(0, 0, (F(0, 0), F(1, 0))), "tick 0, stage 0: F of microbatch 1.* the second F"),
        (with_cell(0, 0, (F(3, 0),)), "tick 0, stage 0: microbatch=3 of a F must .* 0 to 2"),
        (with_cell(0, 0, (F(0.0, 0),)), r"tick 0, stage 0: microbatch=0.0 of a F must be a whole"),
        (with_cell(0, 0, (F(0, 2),)), "tick 0, stage 0: virtual_stage=2 of a F must .* 0 to 1"),
        (with_cell(0, 0, (Task("G", 0, 0),)), "tick 0, stage 0: kind='G' must be one of F, B, W"),
        (with_cell(0, 0, F(0, 0)), "tick 0, stage 0: Task.* must be a sequence"),
        (with_cell(0, 0, ["F0"]), "tick 0, stage 0: 'F0' is no Task"),
        (with_cell(0, 1, 3), "tick 0, stage 1: 3 must be a sequence"),
        ([*BY_HAND, [()]], "tick 5: it has 1 entries, but stages=2"),
        ([*BY_HAND[:4], [], BY_HAND[4]], "tick 4: it has 0 entries, but stages=2"),
        ([], "tasks is empty"),
        (7, "tasks: 7 must be a sequence"),
        (
            [BY_HAND[1], BY_HAND[0], *BY_HAND[2:]],
            "tick 0, stage 1: F of microbatch 0, chunk 0 must be one tick after that of stage 0, "
            "chunk 0, or later; that is in tick 1",
        ),
        (
            [*BY_HAND[:2], [(F(2, 0),), ()], [(B(0, 0),), (F(1, 1), B(1, 1))], *BY_HAND[3:]],
            None,  # F of microbatch 1 and B of 0 wait two ticks: right, if not for the executor
        ),
    ],
)
def test_the_error_names_the_place(tasks, message):
    if message is None:
        Schedule.from_tasks(tasks, stages=2, microbatches=3)
        return
    with pytest.raises(UserError, match=message) as caught:
        Schedule.from_tasks(tasks, stages=2, microbatches=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("placement", [(0, 0), (0,), (0, 1, 0), (0, 2), ("0", "1"), (0.0, 1.0)])
def test_a_placement_gives_every_stage_its_chunks(placement):
    with pytest.raises(UserError, match=r"must name each of the stages 0 to 1 .*ring is \(0, 1\)"):
        Schedule.from_tasks(BY_HAND, stages=2, microbatches=3, placement=placement)


@pytest.mark.parametrize("sizes", [{"stages": 0}, {"microbatches": 1.5}, {"chunks": True}])
def test_sizes_are_whole_numbers(sizes):
    with pytest.raises(UserError, match=f"{next(iter(sizes))}=.* must be"):
        Schedule.from_tasks(BY_HAND, **{"stages": 2, "microbatches": 3, **sizes})


def test_idle_ticks_are_printed_and_cost_nothing(capsys):
    tasks = [*BY_HAND[:2], [(), ()], *BY_HAND[2:]]
    table = Schedule.from_tasks(tasks, stages=2, microbatches=3)
    assert table.simulate().total == schedule("1f1b", 2, 3).simulate().total
    table.print()
    assert capsys.readouterr().out.splitlines()[1:] == [
        "tick      0      1   2      3      4   5",
        "stage 0  F0  F1 ··  ··  F2 B0  ·· B1  B2",
        "stage 1  ··  F0 B0  ··  F1 B1  F2 B2  ··",
    ]
