"""The sharding map draws what JAX does with the specs, the memory bar what the compiler plans."""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import dataclass

import jax
import matplotlib
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny import decoder

from hybrid_jax.analysis.parameter_map import plot_parameter
from hybrid_jax.analysis.parameters import ParameterRow
from hybrid_jax.analysis.report import inspect
from hybrid_jax.cli import main
from hybrid_jax.config.strategy import MESH_AXES, Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.train.step import make_train_step

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CUBE = Strategy(stage=2, data=2, model=2, microbatches=2)
SPECS = [
    PartitionSpec(),
    PartitionSpec("model"),
    PartitionSpec(None, "data"),
    PartitionSpec("model", "stage"),
    PartitionSpec(("stage", "data"), "model"),
    PartitionSpec(("model", "data"), None, "stage"),
    PartitionSpec("data", ("stage", "model"), None),
    PartitionSpec("stage", "data", "model"),
]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def train():
    return make_train_step(decoder(), optax.adamw(1e-3), CUBE, make_mesh(CUBE))


@pytest.fixture(scope="module")
def report(train):
    return inspect(train, (8, 8))


def row_of(spec: PartitionSpec, shape=(8, 16, 8), mesh=None) -> ParameterRow:
    sharding = NamedSharding(mesh or make_mesh(CUBE), spec)
    size = int(np.prod(shape))
    return ParameterRow("some/kernel", shape, ("layers", "embed", "mlp"), sharding, 4 * size, 0)


def held_by_jax(spec: PartitionSpec, shape=(8, 16, 8)) -> dict:
    """Device → the start of its part along each dim, in units of parts."""
    sharding = NamedSharding(make_mesh(CUBE), spec)
    part = sharding.shard_shape(shape)
    return {
        device: tuple((cut.start or 0) // size for cut, size in zip(index, part, strict=True))
        for device, index in sharding.devices_indices_map(shape).items()
    }


@pytest.mark.parametrize(
    ("spec", "parts", "held"),
    [
        (PartitionSpec(), (1, 1, 1), [0] * 8),
        (PartitionSpec("data"), (2, 1, 1), [0, 0, 1, 1, 0, 0, 1, 1]),
        (PartitionSpec(None, ("stage", "data")), (1, 4, 1), [0, 0, 1, 1, 2, 2, 3, 3]),
        (PartitionSpec(("data", "stage")), (4, 1, 1), [0, 0, 2, 2, 1, 1, 3, 3]),
        (PartitionSpec("model", None, "stage"), (2, 1, 2), [0, 2, 0, 2, 1, 3, 1, 3]),
    ],
    ids=str,
)
def test_parts_are_numbered_in_row_major_order(spec, parts, held):
    row = row_of(spec)
    assert (row.parts, row.held.tolist()) == (parts, held)
    assert row.num_parts * row.copies == 8


def named_devices(text: str) -> set[tuple[int, ...]]:
    """The (stage, data, model) coordinates that a label names."""
    ranges = []
    for axis in ("stage", "data", "model"):
        low, high = re.search(rf"{axis} (\d+)(?:\u2013(\d+))?", text).groups()
        ranges.append(range(int(low), int(high or low) + 1))
    return set(itertools.product(*ranges))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_labels_of_the_parts_name_every_device_once(spec):
    ax = plot_parameter(CUBE, row_of(spec))
    drawn = [patch for patch in ax.patches if patch.get_label() == "part"]
    labels = [text.get_text() for text in ax.texts if "stage" in text.get_text()]
    assert len(drawn) == len(labels) == row_of(spec).num_parts
    named = [device for label in labels for device in named_devices(label)]
    assert len(named) == 8
    assert set(named) == set(itertools.product(range(2), repeat=3))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_label_stands_where_its_part_lies(spec):
    """Rows and columns of a rectangle, and the rectangle among its like, follow the array."""
    ax = plot_parameter(CUBE, row_of(spec))
    mesh = make_mesh(CUBE)
    by_jax = held_by_jax(spec)
    places = {}
    for text in ax.texts:
        if "stage" not in text.get_text():
            continue
        devices = named_devices(text.get_text())
        parts = {by_jax[mesh.devices[0, s, d, 0, 0, m]] for s, d, m in devices}
        assert len(parts) == 1
        places[parts.pop()] = text.get_position()
    # In the order of the array: rectangle by rectangle, row by row, column by column.
    for one, other in itertools.combinations(sorted(places), 2):
        (x1, y1), (x2, y2) = places[one], places[other]
        assert x2 > x1 or y2 > y1, (one, other)
    corners = {(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in ax.patches[-len(places) :]}
    assert corners == set(places.values())


def test_copies_are_sheets_behind():
    def sheets(spec):
        ax = plot_parameter(CUBE, row_of(spec))
        return sum(patch.get_label() != "part" for patch in ax.patches)

    assert sheets(PartitionSpec("stage", "data", "model")) == 0
    assert sheets(PartitionSpec("stage", "data")) == 1
    assert sheets(PartitionSpec()) == 3


def test_the_overview_has_a_cell_for_every_parameter_and_device(train, report):
    ax = report.plot_shardings()
    held = [cells for cells in ax.collections if cells.get_label() == "held"]
    assert len(held) == len(report.parameters)
    assert {row.path for row in report.parameters} <= {text.get_text() for text in ax.texts}
    params = jax.tree.leaves(train.init(jax.random.key(0)).params)
    for cells, leaf in zip(held, params, strict=True):
        boxes = [path.get_extents() for path in cells.get_paths()]
        of_whole = leaf.addressable_shards[0].data.size / leaf.size
        np.testing.assert_allclose([box.width for box in boxes], 0.9 * of_whole)
        assert [round((box.x0 + box.x1) / 2) for box in boxes] == list(range(8))
        # Devices hold the same piece of a cell, in the same colour, just where JAX says so.
        indices = {shard.device: str(shard.index) for shard in leaf.addressable_shards}
        same = [indices[device] for device in train.mesh.devices.flat]
        starts = [round(float(box.x0 - i), 6) for i, box in enumerate(boxes)]
        colors = [tuple(color) for color in cells.get_facecolor()]
        for one, other in itertools.combinations(range(8), 2):
            equal = same[one] == same[other]
            assert (starts[one] == starts[other]) == equal
            assert (colors[one] == colors[other]) == equal


def test_one_parameter_by_its_path(report):
    ax = report.plot_shardings("blocks/mlp/up/kernel")
    assert ax.get_title(loc="left") == "blocks/mlp/up/kernel, 4 x 16 x 32: 8 parts"
    with pytest.raises(UserError, match=r"no parameter 'blocks/mlp/upp'.*Did you mean 'blocks/mlp"):
        report.plot_shardings("blocks/mlp/upp")


def test_layers_of_an_interleaved_pipeline_are_not_in_depth_order():
    strategy = Strategy(stage=2, schedule="interleaved", chunks=2, microbatches=2)
    row = row_of(PartitionSpec("stage"), mesh=make_mesh(strategy, jax.devices()[:2]))
    title = plot_parameter(strategy, row).get_title(loc="left")
    assert title.endswith("in the order of the stages, not of depth")


def test_one_device_and_a_scalar():
    alone = Strategy()
    sharding = NamedSharding(make_mesh(alone, jax.devices()[:1]), PartitionSpec())
    ax = plot_parameter(alone, ParameterRow("scale", (), (), sharding, 4, 4))
    assert "whole" in ax.get_title(loc="left")
    assert [text.get_text() for text in ax.texts] == ["the device"]


@dataclass(frozen=True)
class AbsentDevice:
    """As much of a device as a mesh asks for."""

    id: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


def test_many_devices_have_no_text_that_would_not_fit():
    many = Strategy(data=64, model=8, stage=4)
    devices = np.array([AbsentDevice(number) for number in range(many.num_devices)], object)
    mesh = Mesh(devices.reshape(tuple(many.axis_sizes.values())), MESH_AXES)
    spec = PartitionSpec("stage", "data", "model")
    ax = plot_parameter(many, row_of(spec, (4, 4096, 4096), mesh))
    assert sum(patch.get_label() == "part" for patch in ax.patches) == 2048
    assert not [text for text in ax.texts if "stage" in text.get_text()]


def test_memory_bar_adds_up_to_the_peak(report):
    ax = report.plot_memory()
    widths = [bar.get_width() for container in ax.containers for bar in container]
    np.testing.assert_allclose(sum(widths), report.memory.total / 2**10)
    assert "KiB" in ax.get_title(loc="left")
    drawn = {container.get_label(): container[0].get_width() for container in ax.containers}
    for part, num_bytes in report.memory.state.items():
        assert drawn[part] == pytest.approx(num_bytes / 2**10)
    assert drawn["temporaries"] == pytest.approx(report.memory.working / 2**10)


def test_saves_all_in_one(report, tmp_path):
    report.save(tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 10_000
    assert plt.get_fignums() == []
    with pytest.raises(UserError, match=r"must end in \.png"):
        report.save(tmp_path / "step.gif")


CONFIG = """
cpu_devices: 8
model: {preset: nano, num_layers: 2, embed_dim: 16, mlp_dim: 32, num_heads: 2, max_length: 32}
strategy: {stage: 2, data: 4}
data: {global_batch: 8, seq_len: 16}
"""


def test_command_saves(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(CONFIG)
    picture = tmp_path / "step.svg"
    assert main(["inspect", str(tmp_path / "run.yaml"), "--save", str(picture)]) == 0
    assert "blocks/mlp/up/kernel" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "message"), [("x.jpg", "must end in .png"), ("no/x.png", "does not exist; make it")]
)
def test_command_checks_the_path_first(tmp_path, capsys, name, message):
    (tmp_path / "run.yaml").write_text(CONFIG)
    assert main(["inspect", str(tmp_path / "run.yaml"), "--save", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_without_matplotlib(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (report.plot_shardings, report.plot_memory):
        with pytest.raises(UserError, match=r"pip install 'hybrid-jax\[notebook\]'"):
            draw()
