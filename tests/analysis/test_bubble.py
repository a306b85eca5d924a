"""The measured bubble, and what cannot be measured."""

import jax
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import Mesh

import hybrid_jax as hj
from hybrid_jax.analysis.bubble import measure_bubble
from hybrid_jax.errors import UserError


def train_step(model=None, **fields):
    strategy = hj.Strategy(precision="f32", **fields)
    mesh = hj.make_mesh(strategy, jax.devices()[: strategy.num_devices])
    return hj.make_train_step(model or tiny.decoder(), optax.sgd(1e-3), strategy, mesh)


@pytest.mark.slow
def test_measured_near_predicted():
    """Layers of width 128 take most of the step; the bubble of 3/4 is then seen from the times."""
    sizes = {"embed_dim": 128, "mlp_dim": 256, "head_dim": 32, "max_length": 128}
    train = train_step(tiny.decoder(**sizes), stage=4, microbatches=4)
    bubble = measure_bubble(train, (8, 128), steps=5)
    assert bubble.predicted == 0.75
    assert bubble.measured == pytest.approx(0.75, abs=0.25)


def test_the_report_holds_it():
    report = hj.inspect(train_step(stage=2, microbatches=2), (4, 8), measure=True)
    bubble = report.bubble
    assert bubble.predicted == 0.5
    assert bubble.stages_seconds > 0 and bubble.one_stage_seconds > 0
    assert f"measured {bubble.measured:.1%}" in str(report)


def test_one_stage_has_no_bubble_to_measure():
    with pytest.raises(UserError, match="stage=1 has no bubble to measure: choose a strategy"):
        hj.inspect(train_step(data=2), (4, 8), measure=True)


class Absent:
    """A device that no backend of this process has."""

    platform, id, process_index, device_kind = "tpu", 0, 0, "TPU v5p"
    client = jax.devices()[0].client


def test_absent_devices():
    train = train_step(stage=2, microbatches=2)
    mesh = Mesh(
        np.array([Absent(), Absent()]).reshape(train.mesh.devices.shape), train.mesh.axis_names
    )
    object.__setattr__(train, "mesh", mesh)
    with pytest.raises(UserError, match="the tpu devices of this mesh are not here"):
        measure_bubble(train, (4, 8))


@pytest.mark.parametrize("steps", [0, 1.5])
def test_steps(steps):
    with pytest.raises(UserError, match="steps"):
        measure_bubble(train_step(stage=2, microbatches=2), (4, 8), steps=steps)
