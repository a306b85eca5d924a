"""Device groups in the ways XLA writes them."""

import pytest

from hybrid_jax.analysis.groups import crossed_axes, device_groups

SIZES = {"stage": 2, "data": 2, "model": 2}


@pytest.mark.parametrize(
    "text",
    [
        "replica_groups={{0,2},{1,3},{4,6},{5,7}}, use_global_device_ids=true",
        "replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}",
        "replica_groups=mesh['stage'=2,'data'=2,'model'=2] {'data'}, dimensions={0}",
        "replica_groups=mesh[axis_0=2,axis_1=4] {axis_1:(1)2}",
        "replica_groups=mesh['a'=4,'b'=2] {'a':(2)2}, channel_id=3",
        "replica_groups=mesh['data'=2,'rest'=4], device_ids=([2,2,2]T(1,0,2)) {'data'}",
        "replica_groups=mesh['data'=2,'rest'=4], device_ids=(0,1,4,5,2,3,6,7) {'data'}",
    ],
)
def test_groups_over_data(text):
    groups = device_groups(f", channel_id=1, {text}, to_apply=%add", 8)
    assert sorted(map(sorted, groups)) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert crossed_axes(groups, SIZES) == ("data",)


def test_two_parts_of_one_axis():
    groups = device_groups("replica_groups=mesh['x'=8] {'x':(1)2,'x':(4)2}", 8)
    assert groups == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert crossed_axes(groups, SIZES) == ("stage", "model")


@pytest.mark.parametrize("text", ["replica_groups={}", "channel_id=1", "replica_groups=[1,8]<=[8]"])
def test_all_devices(text):
    groups = device_groups(text, 8)
    assert groups == [list(range(8))]
    assert crossed_axes(groups, SIZES) == ("stage", "data", "model")


def test_groups_of_one_cross_nothing():
    assert crossed_axes(device_groups("replica_groups=[8,1]<=[8]", 8), SIZES) == ()


def test_permute_pairs():
    text = "source_target_pairs={{0,4},{1,5},{4,0},{5,1}}"
    groups = device_groups(text, 8)
    assert groups == [[0, 4], [1, 5], [4, 0], [5, 1]]
    assert crossed_axes(groups, SIZES) == ("stage",)


def test_unknown_syntax_is_not_taken_for_all_devices():
    with pytest.raises(AssertionError, match="unknown device groups"):
        device_groups("replica_groups=torus(2,4)", 8)
