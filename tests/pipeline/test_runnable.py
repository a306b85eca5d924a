"""What the executor runs, and the remedy for what it does not."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_schedule import list_schedule, zb_h1

from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.runnable import check_runs
from hybrid_jax.pipeline.schedules import Schedule, forward_only, schedule


@settings(deadline=None)
@given(st.from_type(Schedule))
def test_the_executor_runs_every_named_table_that_trains(table):
    sizes = (table.stages, table.microbatches, table.chunks)
    if table.name == "forward_only":
        with pytest.raises(UserError):
            check_runs(table, *sizes)
    else:
        check_runs(table, *sizes)


def one_at_a_time(stages, microbatches, placement):
    """At most one task per stage and tick, backward first: the classic 1F1B."""
    prefer = lambda stage, ready, done: min(ready, key=lambda t: (t.kind, t.microbatch))
    chunks = len(placement) // stages
    return Schedule.from_tasks(
        list_schedule(stages, microbatches, placement, prefer),
        stages=stages,
        microbatches=microbatches,
        chunks=chunks,
        placement=placement,
    )


BROKEN = dataclasses.replace(schedule("1f1b", 2, 4), num_slots=2)


@pytest.mark.parametrize(
    ("table", "sizes", "message"),
    [
        ("1f1b", (2, 4, 1), "schedule='1f1b' must be a Schedule: .* strategy.schedule"),
        (schedule("1f1b", 2, 4), (4, 4, 1), "has stages=2, but .* has 4: .* strategy.stage=2"),
        (schedule("1f1b", 2, 4), (2, 8, 1), "has microbatches=4, .* strategy.microbatches=4"),
        (schedule("interleaved", 2, 4, 2), (2, 4, 1), "has chunks=2, .* set strategy.chunks=2"),
        (BROKEN, (2, 4, 1), r"tick \d, stage 0: \w_slot is 2, outside"),
        (forward_only(2, 4), (2, 4, 1), "'forward_only' has no B tasks"),
        (
            Schedule.from_tasks(zb_h1(2, 4), stages=2, microbatches=4, name="zb-h1"),
            (2, 4, 1),
            "'zb-h1' has W tasks, but the executor .*: leave them out",
        ),
        (
            one_at_a_time(2, 2, (0, 1, 1, 0)),
            (2, 2, 2),
            r"has placement=\(0, 1, 1, 0\), but .*: use placement=\(0, 1, 0, 1\)",
        ),
        (one_at_a_time(1, 2, (0, 0)), (1, 2, 2), "chunks=2 on one stage.*: use chunks=1"),
        (
            one_at_a_time(2, 4, (0, 1)),
            (2, 4, 1),
            "tick 3, stage 1: F of microbatch 1, chunk 0 uses what stage 0 sent in tick 1, but "
            ".* run it in tick 2, or send later",
        ),
    ],
)
def test_what_it_does_not_run_is_refused_with_a_remedy(table, sizes, message):
    with pytest.raises(UserError, match=message) as caught:
        check_runs(table, *sizes)
    assert "\n" not in str(caught.value)
