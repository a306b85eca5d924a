"""What the planner reads off the tables, against the papers' formulas."""

from __future__ import annotations

import pytest

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.pipeline.schedules import schedule
from hybrid_jax.planning.schedule_facts import schedule_facts

SCHEDULES = [
    *(("1f1b", stages, 1) for stages in (1, 2, 4)),
    *(("gpipe", stages, 1) for stages in (1, 2, 4)),
    *(("interleaved", stages, chunks) for stages in (2, 4) for chunks in (2, 4)),
]


@pytest.mark.parametrize(("name", "stages", "chunks"), SCHEDULES)
@pytest.mark.parametrize("microbatches", [4, 8, 16, 32])
def test_counts_are_those_of_the_papers(name, stages, chunks, microbatches):
    """GPipe holds all microbatches; ticks and bubble: Narayanan et al. 2021, section 2.2."""
    strategy = Strategy(stage=stages, microbatches=microbatches, schedule=name, chunks=chunks)
    facts = schedule_facts(strategy)
    assert facts.f_ticks == facts.b_ticks == chunks * microbatches + stages - 1
    assert facts.heads == microbatches
    assert facts.idle_share == (stages - 1) / (chunks * microbatches)
    table = schedule(name, stages, microbatches, chunks)
    assert facts.idle_share == pytest.approx(table.simulate().bubble_fraction)
    fused = (name, stages) == ("1f1b", 1)
    assert facts.slots == (0 if fused else table.num_slots)
    assert facts.stores_outputs == (name == "gpipe")


@pytest.mark.parametrize(
    ("fields", "sends"),
    [
        ({"stage": 4, "microbatches": 8}, (11, 11)),
        ({"stage": 2, "microbatches": 8}, (9, 8)),  # the last tick is no loop: dx goes nowhere
        ({"stage": 4, "microbatches": 1}, (3, 4)),  # nor is that of the only F + B: x goes nowhere
        ({"stage": 2, "microbatches": 1}, (1, 1)),
        ({"stage": 2, "microbatches": 4, "schedule": "gpipe"}, (5, 5)),
    ],
)
def test_what_is_sent_to_nobody_is_not_sent(fields, sends):
    facts = schedule_facts(Strategy(**fields))
    assert (facts.x_sends, facts.dx_sends) == sends
