"""The ledger of programs whose collectives are known exactly."""

import re

import jax
import numpy as np
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.inspect.ledger import ledger
from tests.inspect import programs
from tests.inspect.programs import LOCAL_BYTES, compile_manual, compile_matmul, make_mesh

EXPECTED = {
    # program: (kind, axes, executions, payload bytes, wire bytes per execution)
    "psum_in_scan": ("all-reduce", ("data",), 5, LOCAL_BYTES, LOCAL_BYTES),
    "psum_over_two_axes": (
        ("all-reduce"), ("stage", "model"), 1, LOCAL_BYTES, 2 * LOCAL_BYTES * 3 / 4,
    ),
    "ppermute": ("collective-permute", ("stage",), 1, LOCAL_BYTES, LOCAL_BYTES),
    "all_gather_in_nested_scan": ("all-gather", ("model",), 12, 2 * LOCAL_BYTES, LOCAL_BYTES),
    "all_to_all": ("all-to-all", ("data",), 1, LOCAL_BYTES, LOCAL_BYTES / 2),
    "reduce_scatter": ("reduce-scatter", ("model",), 1, LOCAL_BYTES, LOCAL_BYTES / 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices())


@pytest.mark.parametrize("program", EXPECTED)
def test_one_collective(program, mesh):
    kind, axes, count, payload, wire = EXPECTED[program]
    book = ledger(compile_manual(getattr(programs, program), mesh).as_text(), mesh)
    (row,) = book.rows
    assert (row.kind, row.axes, row.count, row.bytes) == (kind, axes, count, payload)
    assert row.in_loop == ("scan" in program)
    assert not row.conditional and row.dtype == "f32"
    assert row.wire_bytes == wire * count
    assert "shard_map" in row.op_name


def test_trip_counts_without_annotation(mesh):
    """XLA:TPU writes no `known_trip_count`; the loop conditions alone say the same."""
    text = compile_manual(programs.all_gather_in_nested_scan, mesh).as_text()
    bare = re.sub(r'"known_trip_count":\{[^}]*\}', "", text)
    assert bare != text
    assert [row.trips for row in ledger(bare, mesh).rows] == [(3, 4)]


def test_conditional_counts_the_heaviest_branch(mesh):
    book = ledger(compile_manual(programs.psums_in_cond, mesh).as_text(), mesh)
    assert all(row.conditional for row in book.rows)
    assert book.count("all-reduce", axis="data") == 2
    assert book.count("all-reduce", axis="model") == 1
    assert book.wire_bytes() == 2 * LOCAL_BYTES + LOCAL_BYTES / 4


def test_data_dependent_loop_is_counted_once_and_named(mesh):
    book = ledger(compile_manual(programs.psum_in_while, mesh).as_text(), mesh)
    assert book.count("all-reduce", in_loop=True) == 1
    assert len(book.unknown_loops) == 1


def test_tensor_parallel_matmul(mesh):
    """An all-reduce that the partitioner inserted, on an auto axis."""
    (row,) = ledger(compile_matmul(mesh).as_text(), mesh).rows
    assert (row.kind, row.axes, row.bytes) == ("all-reduce", ("model",), 4 * 4 * 4)


def test_axes_follow_the_mesh_not_the_device_numbers(mesh):
    shuffled = make_mesh(np.array(jax.devices())[[3, 7, 0, 5, 1, 2, 6, 4]])
    (row,) = ledger(compile_manual(programs.psum_in_scan, shuffled).as_text(), shuffled).rows
    assert row.axes == ("data",)


def test_axes_of_size_one_move_nothing():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]).reshape(2, 1, 1), programs.AXES)
    text = compile_manual(lambda x: jax.lax.psum(jax.lax.psum(x, "data"), "stage"), mesh).as_text()
    assert [row.axes for row in ledger(text, mesh).rows] == [("stage",)]


def test_selection_and_totals(mesh):
    text = compile_manual(
        lambda x: programs.psum_in_scan(programs.psum_over_two_axes(x)), mesh
    ).as_text()
    book = ledger(text, mesh)
    assert book.count() == 6
    assert book.count(axis="stage") == book.count(axis="model") == 1
    assert book.count(in_loop=True) == book.count(axis="data") == 5
    totals = [(t.axes, t.count, t.loop_count, t.wire_bytes) for t in book.by_axis()]
    assert totals == [
        (("stage", "model"), 1, 0, 1.5 * LOCAL_BYTES),
        (("data",), 5, 5, 5 * LOCAL_BYTES),
    ]
    assert book.wire_bytes() == 6.5 * LOCAL_BYTES


def test_assert_no(mesh):
    book = ledger(compile_manual(programs.psum_in_scan, mesh).as_text(), mesh)
    book.assert_no("all-gather")
    book.assert_no("all-reduce", axis="data", in_loop=False)
    with pytest.raises(AssertionError, match="5 x all-reduce over data, 256 bytes f32"):
        book.assert_no("all-reduce", axis="data", in_loop=True)


def test_misspelt_selection(mesh):
    book = ledger(compile_manual(programs.ppermute, mesh).as_text(), mesh)
    with pytest.raises(UserError, match="Did you mean 'data'"):
        book.count(axis="dat")
    with pytest.raises(UserError, match="Did you mean 'all-gather'"):
        book.count("allgather")


def test_program_of_another_mesh(mesh):
    text = compile_manual(programs.ppermute, mesh).as_text()
    with pytest.raises(UserError, match="compiled for 8 devices, the mesh has 2"):
        ledger(text, jax.sharding.AbstractMesh((2,), ("data",)))
