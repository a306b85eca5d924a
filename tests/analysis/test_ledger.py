"""The ledger of programs whose collectives are known exactly, compiled for CPU and for TPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

import hybrid_jax as hj
from hybrid_jax.analysis.ledger import ledger
from hybrid_jax.errors import UserError
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.toolchains import absent_devices, environment

AXES = ("stage", "data", "model")
LOCAL_BYTES = 4 * 16 * 4
"""Every program gets f32[4, 16] on each of eight devices."""


def make_mesh(devices, sizes=(2, 2, 2)):
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.fixture(scope="module")
def cpu_mesh():
    return make_mesh(jax.devices())


def absent(name):
    """Devices of a TPU slice to compile for."""
    pytest.importorskip("libtpu", reason="ahead-of-time compilation for TPU needs the [aot] extra")
    cluster = Cluster.of(name)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment(cluster, {}).items():
            patch.setenv(variable, value)
        return absent_devices(cluster)


@pytest.fixture(scope="module")
def uncached():
    """Programs for absent devices cannot be read back from the persistent cache."""
    cached_above = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", cached_above)


@pytest.fixture(scope="module", params=["cpu", "v5e:2x4"])
def mesh(request, uncached):
    return make_mesh(jax.devices() if request.param == "cpu" else absent(request.param))


def compiled_text(function, mesh):
    """HLO of `function` of one local block, manual over all axes."""
    spec = PartitionSpec(AXES)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    sharding = NamedSharding(mesh, spec)
    x = jax.ShapeDtypeStruct((4 * mesh.size, 16), jnp.float32, sharding=sharding)
    return jax.jit(mapped).lower(x).compile().as_text()


def psum_in_scan(x):
    return lax.scan(lambda x, _: (lax.psum(x, "data") * 0.5, None), x, length=5)[0]


def psum_over_two_axes(x):
    return lax.psum(x, ("stage", "model"))


def ppermute(x):
    return lax.ppermute(x, "stage", [(0, 1), (1, 0)])


def all_gather_in_nested_scan(x):
    def inner(x, _):
        return x + lax.all_gather(jnp.sin(x), "model", tiled=True).sum(0, keepdims=True), None

    def outer(x, _):
        return lax.scan(inner, jnp.cos(x), length=4)[0], None

    return lax.scan(outer, x, length=3)[0]


def all_to_all(x):
    return lax.all_to_all(x, "data", 0, 1, tiled=True)


@pytest.mark.parametrize(
    ("program", "kind", "axes", "count", "payload", "wire_per_execution"),
    [
        (psum_in_scan, "all-reduce", "data", 5, LOCAL_BYTES, LOCAL_BYTES),
        (psum_over_two_axes, "all-reduce", "stage model", 1, LOCAL_BYTES, 1.5 * LOCAL_BYTES),
        (ppermute, "collective-permute", "stage", 1, LOCAL_BYTES, LOCAL_BYTES),
        (all_gather_in_nested_scan, "all-gather", "model", 12, 2 * LOCAL_BYTES, LOCAL_BYTES),
        (all_to_all, "all-to-all", "data", 1, LOCAL_BYTES, LOCAL_BYTES / 2),
    ],
)
def test_one_collective(program, kind, axes, count, payload, wire_per_execution, mesh):
    book = ledger(compiled_text(program, mesh), mesh)
    (row,) = book.rows
    assert (row.kind, row.axes, row.count) == (kind, tuple(axes.split()), count)
    assert (row.bytes, row.dtype) == (payload, "f32")
    assert row.wire_bytes == wire_per_execution * count
    assert row.in_loop == (count > 1)
    assert not row.conditional and not book.unknown_loops
    assert f"jit({program.__name__})/shard_map" in row.op_name


def test_nested_trip_counts(mesh):
    (row,) = ledger(compiled_text(all_gather_in_nested_scan, mesh), mesh).rows
    assert row.trips == (3, 4)


def test_trip_counts_without_annotation(cpu_mesh):
    """XLA:TPU writes no `known_trip_count`; the loop conditions alone say the same."""
    text = compiled_text(all_gather_in_nested_scan, cpu_mesh)
    bare = re.sub(r'"known_trip_count":\{[^}]*\}', "", text)
    assert bare != text
    assert ledger(bare, cpu_mesh).rows == ledger(text, cpu_mesh).rows


def test_reduce_scatter(cpu_mesh):
    """On TPU one of this size becomes an all-reduce and a slice; see test_hlo for its own form."""
    text = compiled_text(lambda x: lax.psum_scatter(x, "model", tiled=True), cpu_mesh)
    (row,) = ledger(text, cpu_mesh).rows
    assert (row.kind, row.axes, row.bytes) == ("reduce-scatter", ("model",), LOCAL_BYTES)
    assert row.wire_bytes == LOCAL_BYTES / 2


@pytest.mark.parametrize("name", ["v4:4x4x4", "v5p:4x4x4"])
def test_a_gather_over_a_closed_torus_stays_a_gather(name, uncached):
    """Without the links that close it, each is an all-reduce of zero-padded arrays; so is one over
    devices that do not follow the torus."""
    mesh = hj.make_mesh(hj.Strategy(data=64), absent(name))
    text = compiled_text(lambda x: lax.all_gather(x, "data", tiled=True)[:4], mesh)
    (row,) = ledger(text, mesh).rows
    assert (row.kind, row.axes, row.bytes) == ("all-gather", ("data",), 64 * LOCAL_BYTES)


def test_conditional_counts_the_heaviest_branch(mesh):
    def program(x):
        """Two psums over `data` in one branch; one, and a small one over `model`, in the other."""
        return lax.cond(
            x[0, 0] > 0,
            lambda x: lax.psum(jnp.sin(lax.psum(x, "data")), "data"),
            lambda x: lax.psum(lax.psum(x, "data")[0:1], "model") + x,
            x,
        )

    book = ledger(compiled_text(program, mesh), mesh)
    assert all(row.conditional for row in book.rows)
    assert book.count("all-reduce", axis="data") == 2
    assert book.count("all-reduce", axis="model") == 1
    assert book.wire_bytes() == 2 * LOCAL_BYTES + LOCAL_BYTES / 4


def test_data_dependent_loop_is_counted_once_and_named(mesh):
    def program(x):
        return lax.while_loop(lambda x: x[0, 0] < 1, lambda x: lax.psum(jnp.exp(x), "data"), x)

    book = ledger(compiled_text(program, mesh), mesh)
    assert book.count("all-reduce", in_loop=True) == 1
    assert len(book.unknown_loops) == 1


def test_tensor_parallel_matmul(mesh):
    """The partitioner's own all-reduce of f32[4, 4] on an auto axis."""

    def matrix(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    a, b = matrix((8, 16), "data", "model"), matrix((16, 4), "model", None)
    out = NamedSharding(mesh, PartitionSpec("data"))
    text = jax.jit(jnp.dot, out_shardings=out).lower(a, b).compile().as_text()
    (row,) = ledger(text, mesh).rows
    assert (row.kind, row.axes, row.bytes) == ("all-reduce", ("model",), 4 * 4 * 4)


def test_axes_follow_the_mesh_not_the_device_numbers():
    shuffled = make_mesh(np.array(jax.devices())[[3, 7, 0, 5, 1, 2, 6, 4]])
    (row,) = ledger(compiled_text(psum_in_scan, shuffled), shuffled).rows
    assert row.axes == ("data",)


def test_axes_of_size_one_move_nothing():
    mesh = make_mesh(jax.devices()[:2], sizes=(2, 1, 1))
    text = compiled_text(lambda x: lax.psum(lax.psum(x, "data"), "stage"), mesh)
    assert [row.axes for row in ledger(text, mesh).rows] == [("stage",)]


def test_selection_and_totals(mesh):
    book = ledger(compiled_text(lambda x: psum_in_scan(psum_over_two_axes(x)), mesh), mesh)
    assert book.count() == 6
    assert book.count(axis="stage") == book.count(axis="model") == 1
    assert book.count(in_loop=True) == book.count(axis="data") == 5
    assert [(t.axes, t.count, t.loop_count, t.wire_bytes) for t in book.by_axis()] == [
        (("stage", "model"), 1, 0, 1.5 * LOCAL_BYTES),
        (("data",), 5, 5, 5 * LOCAL_BYTES),
    ]
    assert book.wire_bytes() == 6.5 * LOCAL_BYTES


def test_assert_no(cpu_mesh):
    book = ledger(compiled_text(psum_in_scan, cpu_mesh), cpu_mesh)
    book.assert_no("all-gather")
    book.assert_no("all-reduce", axis="data", in_loop=False)
    with pytest.raises(AssertionError, match="5 x all-reduce over data, 256 bytes f32"):
        book.assert_no("all-reduce", axis="data", in_loop=True)


def test_misspelt_selection(cpu_mesh):
    book = ledger(compiled_text(ppermute, cpu_mesh), cpu_mesh)
    with pytest.raises(UserError, match="Did you mean 'data'"):
        book.count(axis="dat")
    with pytest.raises(UserError, match="Did you mean 'all-gather'"):
        book.count("allgather")


def test_program_of_another_mesh(cpu_mesh):
    text = compiled_text(ppermute, cpu_mesh)
    with pytest.raises(UserError, match="compiled for 8 devices, the mesh has 2"):
        ledger(text, AbstractMesh((2,), ("data",)))
