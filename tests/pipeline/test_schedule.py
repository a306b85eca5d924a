"""The tables: placed as the papers say, for every size, and refused where they do not exist."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hybrid_jax
from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.schedules import Schedule, forward_only, schedule


@settings(deadline=None)
@given(st.from_type(Schedule))
def test_every_table_is_valid(table):
    table.validate()


@settings(deadline=None)
@given(st.from_type(Schedule))
def test_length_is_the_closed_form(table):
    forwards = table.chunks * table.microbatches
    backwards_begin = {
        "gpipe": forwards + table.stages - 1,
        "1f1b": table.stages - 1,
        "interleaved": table.chunks * table.stages - 1,
        "forward_only": 0,
    }
    assert table.num_ticks == backwards_begin[table.name] + forwards + table.stages - 1


@settings(deadline=None)
@given(st.from_type(Schedule))
def test_segments_tile_the_ticks_with_their_kinds(table):
    segments = table.segments()
    ticks = [tick for segment in segments for tick in range(segment.start, segment.stop)]
    assert ticks == list(range(table.num_ticks))
    for segment in segments:
        rows = slice(segment.start, segment.stop)
        assert ((table.f_microbatch[rows] >= 0).any(axis=1) == segment.forward).all()
        assert ((table.b_microbatch[rows] >= 0).any(axis=1) == segment.backward).all()
        heads = int((table.head[rows] >= 0).sum())
        expected = {"none": 0, "all": segment.stop - segment.start}
        assert heads == expected.get(segment.head, heads)
        assert (segment.head == "some") == (0 < heads < segment.stop - segment.start)
    for before, after in itertools.pairwise(segments):
        assert (before.forward, before.backward) != (after.forward, after.backward)


@settings(deadline=None)
@given(st.from_type(Schedule))
def test_fused_and_stores_outputs_follow_from_the_name_and_sizes(table):
    assert table.fused == (table.name == "1f1b" and table.stages == 1)
    assert table.stores_outputs == (table.name == "gpipe")


def test_1f1b_of_2_stages_by_hand():
    table = schedule("1f1b", stages=2, microbatches=3)
    np.testing.assert_array_equal(table.f_microbatch, [[0, -1], [1, 0], [2, 1], [-1, 2], [-1, -1]])
    np.testing.assert_array_equal(table.b_microbatch, [[-1, -1], [-1, 0], [0, 1], [1, 2], [2, -1]])
    np.testing.assert_array_equal(table.head, [-1, 0, 1, 2, -1])


def test_interleaved_of_2_stages_and_2_chunks_by_hand():
    table = schedule("interleaved", stages=2, microbatches=2, chunks=2)
    np.testing.assert_array_equal(table.f_microbatch[:, 0], [0, 1, 0, 1, -1, -1, -1, -1])
    np.testing.assert_array_equal(table.f_chunk[:, 0], [0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(table.b_microbatch[:, 1], [-1, -1, -1, 0, 1, 0, 1, -1])
    np.testing.assert_array_equal(table.b_chunk[:, 1], [0, 0, 0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(table.head, [-1, -1, -1, 0, 1, -1, -1, -1])


def test_a_single_stage_of_1f1b_runs_forward_and_backward_of_a_microbatch_in_one_tick():
    table = schedule("1f1b", stages=1, microbatches=5)
    (segment,) = table.segments()
    assert (segment.forward, segment.backward, segment.head) == (True, True, "all")
    assert table.num_ticks == 5


def test_tables_are_int32():
    table = schedule("interleaved", stages=2, microbatches=4, chunks=2)
    for name in ("f_microbatch", "f_chunk", "f_slot", "b_microbatch", "b_chunk", "b_slot", "head"):
        assert getattr(table, name).dtype == np.int32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpip", 2, 2), "Did you mean 'gpipe'"),
        (("1f1b", 0, 2), "stages=0 must be at least 1"),
        (("1f1b", 2, -1), "microbatches=-1 must be at least 1"),
        (("gpipe", 2, 2, 0), "chunks=0 must be at least 1"),
        (("1f1b", 2, 2, 2), "only schedule='interleaved'"),
        (("interleaved", 2, 2, 1), "use chunks=2"),
        (("interleaved", 1, 2, 2), "use more stages, or schedule='1f1b'"),
        (("interleaved", 4, 6, 2), "use 4 or 8, or schedule='1f1b'"),
        (("interleaved", 4, 2, 2), "use 4, or schedule='1f1b'"),
    ],
)
def test_a_schedule_that_does_not_exist_is_refused_with_a_remedy(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        schedule(*arguments)
    assert "\n" not in str(caught.value)


def test_forward_only_refuses_what_interleaved_refuses():
    with pytest.raises(UserError, match="use 4 or 8"):
        forward_only(stages=4, microbatches=5, chunks=2)
    with pytest.raises(UserError, match="stages=0"):
        forward_only(stages=0, microbatches=5)


def test_schedules_need_no_jax():
    # The package imports JAX for its users, so it is stood in for by an empty one.
    code = f"""
import sys, types
package = sys.modules["hybrid_jax"] = types.ModuleType("hybrid_jax")
package.__path__ = {list(hybrid_jax.__path__)!r}
from hybrid_jax.pipeline.schedules import schedule
schedule("1f1b", 2, 2).validate()
sys.exit("jax" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
