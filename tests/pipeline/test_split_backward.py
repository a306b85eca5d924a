"""Split backward and other placements: expressible, validated, simulated and drawn."""

import itertools
import re

import matplotlib
import numpy as np
import pytest
from list_schedule import list_schedule, zb_h1

from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.schedules import Schedule, schedule
from hybrid_jax.pipeline.tasks import Task

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ZB_H1 = Schedule.from_tasks(zb_h1(4, 8), stages=4, microbatches=8, name="zb-h1")
SIZES = list(itertools.product([2, 3, 4, 6], [8, 13]))


def first_ready(stage, ready, done):
    """Backward before forward, earlier microbatches first."""
    return min(ready, key=lambda task: (task.kind == "F", task.microbatch, task.kind))


V_SHAPE = Schedule.from_tasks(
    list_schedule(3, 4, (0, 1, 2, 2, 1, 0), first_ready),
    stages=3,
    microbatches=4,
    chunks=2,
    placement=(0, 1, 2, 2, 1, 0),
    name="v-shape",
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize(("stages", "microbatches"), SIZES)
def test_zb_h1_has_a_third_of_the_bubble_of_1f1b(stages, microbatches):
    """(S-1) (f + b - w) against (S-1) (f + b + w): Qi et al. 2024, table 2."""
    table = Schedule.from_tasks(
        zb_h1(stages, microbatches), stages=stages, microbatches=microbatches
    )
    total = table.simulate(f_cost=1, b_cost=1, w_cost=1).total
    assert total == 3 * microbatches + stages - 1
    whole = schedule("1f1b", stages, microbatches).simulate(f_cost=1, b_cost=2).total
    assert whole == 3 * microbatches + 3 * (stages - 1)
    assert table.num_slots == stages + 1  # as many as stages held, and one for garbage
    assert table.splits_backward and not table.fused and table.kinds == ("F", "B", "W")


def test_costs_by_default_are_those_of_matmuls():
    assert ZB_H1.simulate().total == ZB_H1.simulate(1, 1, 0, 1).total
    assert ZB_H1.simulate(2).total == ZB_H1.simulate(2, 2, 0, 2).total
    np.testing.assert_allclose(ZB_H1.simulate(1, 2, 0, 4).busy, 8 * 7)
    with pytest.raises(UserError, match=r"w_cost=-1.* must be positive"):
        ZB_H1.simulate(w_cost=-1)


def test_zb_h1_reads_like_the_figure_of_the_paper(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ZB_H1.print()
    title, _, first, *_ = capsys.readouterr().out.splitlines()
    assert title == "zb-h1: 4 stages, 8 microbatches, 27 ticks, bubble 12.5 % of the work"
    assert first.startswith("stage 0  F0  F1  F2  F3  ··  ··  ··  B0  W0  F4  B1  W1  F5  B2  W2")


def cells(ax, stage):
    """The (start, stop) of a stage's cells, and their colours."""
    found = []
    for collection in ax.collections[ZB_H1.stages :]:
        colors = itertools.cycle(collection.get_facecolor())
        for path, color in zip(collection.get_paths(), colors, strict=False):
            box = path.get_extents()
            if box.ymin < stage < box.ymax:
                found.append((box.x0, box.x1, tuple(color)))
    return sorted(found)


@pytest.mark.parametrize("head_cost", [0.0, 0.6])
def test_drawn_cells_fill_the_busy_time_without_overlap(head_cost):
    costs = {"f_cost": 1.0, "b_cost": 1.5, "w_cost": 0.75, "head_cost": head_cost}
    ax = ZB_H1.plot(**costs)
    simulation = ZB_H1.simulate(**costs)
    for stage in range(ZB_H1.stages):
        spans = np.array([cell[:2] for cell in cells(ax, stage)])
        assert (spans[1:, 0] >= spans[:-1, 1] - 1e-9).all()
        np.testing.assert_allclose((spans[:, 1] - spans[:, 0]).sum(), simulation.busy[stage])
        assert len({cell[2] for cell in cells(ax, stage)}) == 3 + bool(head_cost)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["F", *(["head"] if head_cost else []), "B", "W"]


def changed(tick, stage, cell):
    tasks = [list(row) for row in ZB_H1.tasks()]
    tasks[tick][stage] = cell
    return tasks


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (changed(8, 0, ()), "stage 0: W of microbatch 0, chunk 0 runs in no tick"),
        (
            changed(0, 2, (Task("W", 0, 2),)),
            "tick 10, stage 2: W of microbatch 0, chunk 0 runs again, after tick 0",
        ),
        (
            [
                *changed(8, 0, ())[:6],
                [(Task("W", 0, 0),), *ZB_H1.tasks()[6][1:]],
                *changed(8, 0, ())[7:],
            ],
            "tick 6, stage 0: W of microbatch 0, chunk 0 runs before its B, which is in tick 7",
        ),
    ],
)
def test_every_w_runs_once_and_after_its_b(tasks, message):
    with pytest.raises(UserError, match=message):
        Schedule.from_tasks(tasks, stages=4, microbatches=8)


def test_residuals_live_until_their_w():
    """A slot that its B has read but its W has not is still alive."""
    table = ZB_H1
    stage = 0
    b_tick = int(np.flatnonzero(table.b_microbatch[:, stage] == 1)[0])
    w_tick = int(np.flatnonzero(table.w_microbatch[:, stage] == 1)[0])
    slot = table.b_slot[b_tick, stage]
    assert b_tick < w_tick and table.w_slot[w_tick, stage] == slot
    between = [t for t in range(b_tick, w_tick + 1) if (table.f_microbatch[t] >= 0).any()]
    assert between and slot not in table.f_slot[between, stage]
    wrong = table.f_slot.copy()
    wrong[between[0], stage] = slot
    broken = Schedule(**{**vars(table), "f_slot": wrong})
    with pytest.raises(UserError, match=f"tick {between[0]}, stage 0: slot {slot} is overwritten"):
        broken.validate()
    wrong = table.w_slot.copy()
    wrong[w_tick, stage] = (slot + 1) % table.num_slots
    broken = Schedule(**{**vars(table), "w_slot": wrong})
    with pytest.raises(UserError, match=f"tick {w_tick}, stage 0: W of .* does not hold"):
        broken.validate()


def test_a_v_turns_around_on_the_last_stage(capsys):
    """Its first and its last layers share stage 0, which so has the heads too."""
    assert V_SHAPE.placement == (0, 1, 2, 2, 1, 0)
    heads = np.flatnonzero(V_SHAPE.head >= 0)
    np.testing.assert_array_equal(V_SHAPE.b_microbatch[heads, 0], V_SHAPE.head[heads])
    np.testing.assert_array_equal(V_SHAPE.b_chunk[heads, 0], 1)
    assert V_SHAPE.stores_outputs
    V_SHAPE.plot()
    V_SHAPE.print()
    stages = re.findall(r"^stage 2 +(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert " ".join(stages).split()[2:4] == ["F0.0", "F0.1"]
