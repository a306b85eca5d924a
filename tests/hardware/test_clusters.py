"""Clusters: what their names mean, how mesh axes lie on links, and names that mean nothing."""

from __future__ import annotations

import math

import jax
import pytest

import hybrid_jax as hj
from hybrid_jax.config.strategy import MESH_AXES, Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.hardware.chips import CHIPS, chip_of_kind, peak_flops
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.hardware.links import Link
from hybrid_jax.hardware.topologies import wrapped_dims


@pytest.mark.parametrize(
    ("name", "devices", "slices", "islands"),
    [
        ("v5p:4x4x4", 64, 1, 1),
        ("v5p:64", 64, 1, 1),
        ("v5e:16x16x2", 512, 2, 2),
        ("v6e:8x8", 64, 1, 1),
        ("v4:2x2x1", 4, 1, 1),
        ("h200:8", 8, 1, 1),
        ("h100:64", 64, 1, 8),
        ("a100:4", 4, 1, 1),
        ("cpu:8", 8, 1, 1),
    ],
)
def test_names(name, devices, slices, islands):
    cluster = Cluster.of(name)
    assert (cluster.num_devices, cluster.slices, cluster.islands) == (devices, slices, islands)
    assert Cluster.of(cluster.describe()) == cluster


@pytest.mark.parametrize(
    ("count", "torus"),
    [
        ("v5p:1", "v5p:1x1x1"),
        ("v5p:4", "v5p:2x2x1"),
        ("v5p:16", "v5p:2x2x4"),
        ("v5p:32", "v5p:2x4x4"),
        ("v5p:192", "v5p:4x4x12"),
        ("v5p:6144", "v5p:16x16x24"),
        ("v5e:8", "v5e:2x4"),
        ("v6e:128", "v6e:8x16"),
    ],
)
def test_a_number_of_chips_is_the_most_even_torus(count, torus):
    assert Cluster.of(count).describe() == torus


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5q:4x4x4", "unknown chip 'v5q'.*Did you mean 'v5p'"),
        ("h100", "says no number of devices: write 'h100:8'"),
        ("v5p:", "write 'v5p:4x4x4'"),
        ("h100:12", "12 is no multiple: use 8 or 16"),
        ("h100:8x8", "has no torus.*'h100:64'"),
        ("v5p:4x4", "slice has 3 dims"),
        ("v5e:3x3", "dim 3 of a v5e torus must be 1, 2 or a multiple of 4: use 'v5e:2x4'"),
        ("v5e:32x32", "at most 256 chips, not 1024.*one number more: use 'v5e:16x16'"),
        ("v5e:32x8", "dim 32 of a v5e torus must be at most 16: use 'v5e:16x16'"),
        ("v5e:1x8", "part of one host, 2x4, or made of 2x2: use 'v5e:2x4'"),
        ("v5p:1x4x4", "made of 2x2x1: use"),
        ("v5p:2x2x8", "beyond 4x4x4 is made of such cubes: use 'v5p:2x4x4'"),
        ("v5p:48", "no 3-dimensional torus of 48 v5p chips: use 'v5p:2x4x4' or 'v5p:4x4x4'"),
        ("v5e:512", "no 2-dimensional torus of 512.*use 'v5e:16x16'.*slices as one number more"),
        ("v5p:4x-4x4", "must be whole numbers above 0"),
        ("h100:0", "must be whole numbers above 0"),
        ("there/is/none.yaml", "no such file"),
        (8, "must be a name such as"),
        ({"chip": "h100"}, "needs 'chip'.*and 'devices'"),
        ({"chip": "h100", "devices": 8, "hbm_byte": 1}, "unknown field 'hbm_byte'.*Did you mean"),
        ({"chip": "h100", "devices": 8, "hbm_bytes": "much"}, "must be a finite number above 0"),
        ({"chip": "h100", "devices": 8, "hbm_bytes": math.nan}, "must be a finite number above 0"),
        ({"chip": "h100", "devices": 8, "hbm_bytes": ".nan"}, "must be a finite number above 0"),
        ({"chip": "h100", "devices": 8, "flops_bf16": 0}, "must be a finite number above 0"),
        ({"chip": "h100", "devices": 8, "latency": -1}, "must be a finite number, 0 or more"),
        ({"chip": "h100", "devices": 8, "host": 2.5}, "must be a whole number, at least 1"),
        ({"chip": "v5p", "devices": 64, "wrap": 0}, "must be a whole number, at least 1"),
        ({"chip": "v5p", "devices": 64, "domain": 10**400}, "must be a whole number, at least 1"),
        ({"chip": "v5p", "devices": 64, "torus_dims": 1}, r"must be 0 \(a switch\), 2 or 3"),
        ({"chip": "v5p", "devices": 64, "platform": "npu"}, "must be one of tpu, gpu, cpu"),
        ({"chip": "v5p", "devices": 64, "name": 5}, "must be text"),
        ({"chip": ["h100"], "devices": 8}, "unknown chip"),
    ],
)
def test_names_that_mean_nothing(name, message):
    with pytest.raises(UserError, match=message) as error:
        Cluster.of(name)
    assert "\n" not in str(error.value)


def test_a_file_describes_other_chips(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("chip: h100\nname: h20\ndevices: 16\nflops_bf16: 1.48e14\nhbm_bytes: 9.6e10\n")
    cluster = Cluster.of(str(path))
    assert (cluster.chip.name, cluster.num_devices, cluster.islands) == ("h20", 16, 2)
    assert cluster.chip.flops_bf16 == 1.48e14
    assert cluster.chip.hbm_bandwidth == CHIPS["h100"].hbm_bandwidth


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"chip: h100\ndevices: 8\nchip: v5p", "line 3: 'chip' stands in line 1 already"),
        (b"[" * 10_000, "line 1: it is nested deeper than 20 levels"),
        (b"chip: [", "is not YAML: line 1"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_describes_nothing(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        Cluster.of(tmp_path / "mine.yaml")


def test_a_mesh():
    mesh = hj.make_mesh(Strategy(data=4, model=2))
    assert Cluster.of(mesh).describe() == "cpu:8"
    assert chip_of_kind(jax.devices()[0].device_kind) == "cpu"


@pytest.mark.parametrize(
    "kind",
    ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "NVIDIA A100-SXM4-80GB", "NVIDIA B200"],
)
def test_peaks_agree_with_those_of_inspect(kind):
    name = chip_of_kind(kind)
    assert name is not None
    assert CHIPS[name].flops_bf16 == peak_flops(kind)


def test_a_cube_gives_each_axis_a_ring_of_its_own():
    cluster = Cluster.of("v5p:4x4x4")
    links = cluster.links(Strategy(stage=4, data=4, model=4))
    one_way = cluster.chip.link_bandwidth * cluster.chip.link_fraction
    assert {links[axis].inner_bandwidth for axis in ("stage", "data", "model")} == {2 * one_way}
    whole = cluster.links(Strategy(data=64))["data"]
    assert whole.inner_bandwidth == 6 * one_way
    assert tuple(sorted(links)) == tuple(sorted(MESH_AXES))


@pytest.mark.parametrize(
    ("name", "wraps", "hosts"),
    [
        ("v5p:4x4x4", (True, True, True), 16),
        ("v4:4x4x8", (True, True, True), 32),
        ("v5p:4x4x12x2", (True, True, True), 96),
        ("v5p:2x4x4", (False, False, False), 8),
        ("v4:2x2x1", (False, False, False), 1),
        ("v5p:1x1x1", (False, False, False), 1),
        ("v5e:16x16", (True, True), 64),
        ("v6e:8x16", (False, True), 32),
        ("v5e:8x8", (False, False), 16),
        ("v6e:2x4", (False, False), 1),
        ("v5e:1x4x3", (False, False), 3),
    ],
)
def test_which_dims_close_and_how_many_hosts_there_are(name, wraps, hosts):
    cluster = Cluster.of(name)
    assert wrapped_dims(cluster.shape, cluster.chip) == wraps
    assert cluster.hosts == hosts


def test_small_tori_do_not_close():
    cluster = Cluster.of("v5p:2x4x4")  # dims of 4, but no whole cube
    one_way = cluster.chip.link_bandwidth * cluster.chip.link_fraction
    assert cluster.links(Strategy(data=8, model=4))["model"].inner_bandwidth == one_way
    cluster = Cluster.of("v5e:4x4")
    one_way = cluster.chip.link_bandwidth * cluster.chip.link_fraction
    assert cluster.links(Strategy(data=4, model=4))["model"].inner_bandwidth == one_way
    split = cluster.links(Strategy(data=8, model=2))
    assert split["model"].inner_bandwidth == one_way
    assert split["data"].inner_bandwidth == one_way + one_way / 2  # shares the split dim's links


def test_hosts_of_gpus():
    links = Cluster.of("h100:64").links(Strategy(stage=4, data=4, model=4))
    assert (links["model"].inner, links["model"].outer, links["model"].name) == (4, 1, "NVLink")
    assert (links["data"].inner, links["data"].outer, links["data"].name) == (2, 2, "NVLink+IB")
    assert (links["stage"].inner, links["stage"].outer, links["stage"].name) == (1, 4, "IB")


def test_slices_go_to_the_outer_axes():
    links = Cluster.of("v5e:16x16x2").links(Strategy(replica=2, data=64, model=4))
    assert (links["replica"].outer, links["replica"].name) == (2, "DCN")
    assert (links["data"].outer, links["model"].outer) == (1, 1)
    links = Cluster.of("v5e:16x16x2").links(Strategy(data=128, model=4))
    assert (links["data"].inner, links["data"].outer, links["data"].name) == (64, 2, "ICI+DCN")


def test_time_of_a_gather_by_hand():
    ring = Link(inner=4, outer=1, inner_bandwidth=100.0, outer_bandwidth=1.0, name="ICI")
    assert ring.seconds(400.0) == pytest.approx(3.0)
    both = Link(inner=4, outer=2, inner_bandwidth=100.0, outer_bandwidth=10.0, name="ICI+DCN")
    assert both.seconds(400.0) == pytest.approx(5.0)  # half of it, by four devices at once
    assert both.permute_seconds(10.0) == pytest.approx(1.0)
    assert Link(1, 1, 1.0, 1.0, "-").permute_seconds(10.0) == 0
