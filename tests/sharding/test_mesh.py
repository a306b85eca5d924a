"""The mesh of a strategy, and what it says when the devices are too few or too many."""

import jax
import pytest

from hybrid_jax import Strategy, make_mesh
from hybrid_jax.config.strategy import MESH_AXES
from hybrid_jax.errors import UserError
from hybrid_jax.sharding.mesh import _split_over_slices


def test_every_axis_exists_in_order():
    mesh = make_mesh(Strategy(stage=2, data=2, model=2))
    assert mesh.axis_names == MESH_AXES
    assert tuple(mesh.shape.values()) == (1, 2, 2, 1, 1, 2)


def test_every_device_is_used_once():
    mesh = make_mesh(Strategy(replica=2, data=3), jax.devices()[:6])
    assert sorted(d.id for d in mesh.devices.flat) == [d.id for d in jax.devices()[:6]]


@pytest.mark.parametrize(("strategy", "wanted"), [(Strategy(data=4), 4), (Strategy(model=16), 16)])
def test_wrong_number_of_devices(strategy, wanted):
    with pytest.raises(UserError) as error:
        make_mesh(strategy)
    message = str(error.value)
    assert f"need {wanted} devices, but there are 8" in message
    assert f"force_cpu_devices({wanted})" in message
    assert "\n" not in message


def test_one_device_strategy_names_no_axis():
    with pytest.raises(UserError, match="axes all 1 need 1 devices"):
        make_mesh(Strategy())


@pytest.mark.parametrize(
    ("strategy", "slices", "outer"),
    [
        (Strategy(replica=2, data=4), 2, (2, 1, 1, 1, 1, 1)),
        (Strategy(replica=2, data=4), 4, (2, 1, 2, 1, 1, 1)),
        (Strategy(stage=4, model=8), 2, (1, 2, 1, 1, 1, 1)),
    ],
)
def test_slices_lie_on_the_outermost_axes(strategy, slices, outer):
    assert _split_over_slices(strategy.axis_sizes, slices) == outer


def test_slices_never_cut_the_model_axis():
    with pytest.raises(UserError, match="2 slices cannot be laid on replica=1 x stage=1 x data=1"):
        _split_over_slices(Strategy(model=8).axis_sizes, 2)
