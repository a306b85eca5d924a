"""The pictures of a plan show its numbers: bars add up, lines stand at limits, ticks fill it."""

from __future__ import annotations

import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from hybrid_jax.config.model import preset
from hybrid_jax.errors import UserError
from hybrid_jax.planning.aot_worker import Compiled
from hybrid_jax.planning.phases import phases
from hybrid_jax.planning.planner import plan
from hybrid_jax.planning.report import PlanReport
from hybrid_jax.planning.verified import Verified

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEVEN = preset("llama2-7b")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def report_of(devices: str, **options) -> PlanReport:
    return plan(SEVEN, devices, global_batch=128, seq_len=4096, **options)


@pytest.fixture(scope="module")
def limited() -> PlanReport:
    """Five plans fit; three of the others are shown below them."""
    return report_of("v5p:4x4x4", memory_gib=4, top=5)


@pytest.fixture(scope="module")
def nothing() -> PlanReport:
    return plan(preset("llama2-70b"), "h100:8", global_batch=128, seq_len=4096, stage=8)


def bars(ax) -> dict[str, np.ndarray]:
    """Part → its (start, width) in each row."""
    return {
        container.get_label(): np.array([(bar.get_x(), bar.get_width()) for bar in container])
        for container in ax.containers
    }


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def fitting(report: PlanReport) -> list:
    return [found for found in report.plans if found.time]


def test_bars_add_up_to_the_step_time(limited):
    drawn = bars(limited.plot())
    shown = fitting(limited)[:5]
    widths = sum(part[:, 1] for part in drawn.values())
    np.testing.assert_allclose(widths[:5], [found.time.total for found in shown])
    np.testing.assert_allclose(drawn["bubble"][:5, 1], [found.time.bubble for found in shown])
    for axis in ("stage", "data", "model"):
        seconds = [found.time.communication.get(axis, 0.0) for found in shown]
        np.testing.assert_allclose(drawn[f"over {axis}"][:5, 1], seconds)


def test_parts_of_a_bar_stand_behind_each_other(limited):
    end = 0.0
    for part in bars(limited.plot()).values():
        np.testing.assert_allclose(part[:, 0], end)
        end = part[:, 0] + part[:, 1]


def test_who_does_not_fit_has_a_reason_and_no_bar(limited):
    ax = limited.plot()
    widths = sum(part[:, 1] for part in bars(ax).values())
    misses = [found for found in limited.plans if found.time is None][:3]
    assert len(misses) == 3
    np.testing.assert_array_equal(widths[5:], 0)
    for row, miss in enumerate(misses, 5):
        (text,) = [text for text in ax.texts if text.get_text().strip() == miss.reason]
        assert text.get_position() == (0, row)


def test_every_plan_has_rank_sizes_and_mfu(limited):
    written = texts(limited.plot())
    for rank, found in enumerate(fitting(limited)[:5], 1):
        assert str(rank) in written
        assert f"{found.time.mfu:.0%}" in written
        sizes = f"stage={found.strategy.stage} " if found.strategy.stage > 1 else "data="
        assert any(text.startswith(sizes) for text in written)


def test_every_part_is_named_once_in_a_bar_or_in_the_key(limited):
    for ax in (limited.plot(), limited.plot_memory()):
        key = [text.get_text() for text in ax.get_legend().get_texts()]
        inside = set(texts(ax)) & set(bars(ax))
        assert sorted([*key, *inside]) == sorted(bars(ax))


def test_memory_bars_add_up_and_the_line_stands_at_the_limit(limited):
    ax = limited.plot_memory()
    shown = [*fitting(limited)[:5], *[found for found in limited.plans if not found.time][:3]]
    drawn = bars(ax)
    np.testing.assert_allclose(
        sum(part[:, 1] for part in drawn.values()),
        [found.memory.total / 2**30 for found in shown],
    )
    np.testing.assert_allclose(
        drawn["compute copy"][:, 1], [found.memory.compute_copy / 2**30 for found in shown]
    )
    (line,) = ax.lines
    assert set(line.get_xdata()) == {4.0}
    assert line.get_linestyle() == "-"
    assert any("device 95.74 GiB" in text for text in texts(ax))  # too far away for a line


def test_a_devices_memory_is_dashed_beside_a_limit():
    lines = report_of("h200:8", memory_gib=100, top=2).plot_memory().lines
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    assert lines[0].get_xdata()[0] < lines[1].get_xdata()[0]


def test_what_the_compiler_says_is_a_diamond(limited):
    first, second = fitting(limited)[:2]
    verified = tuple(
        Verified(found.strategy, 4 * 2**30, found.memory.total, {}, 0.0, compiled)
        for found, compiled in ((first, Compiled(total=3 * 2**30)), (second, Compiled(failure="x")))
    )
    ax = replace(limited, verified=verified).plot_memory()
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in diamonds] == [(3.0, 0)]
    assert any(text.endswith(", compiled 3") for text in texts(ax))


@pytest.mark.parametrize(
    "fixed",
    [
        {"stage": 4},
        {"stage": 4, "schedule": "gpipe"},
        {"stage": 4, "zero": 3, "remat": "layer"},
        {"stage": 1, "model": 8},
    ],
)
def test_the_timeline_lasts_as_long_as_the_step(fixed):
    report = report_of("v5p:4x4x4", **fixed)
    found = fitting(report)[0]
    ax = report.plot_timeline()
    np.testing.assert_allclose(ax.get_xlim(), [0, found.time.total], rtol=1e-9)
    assert ax.get_xlabel() == "seconds"
    assert found.strategy.describe() in ax.get_title(loc="left")
    parts = phases(report.problem, found)
    if found.strategy.zero == 3:
        assert parts.gather + parts.reduce < 0.1 * found.time.communication["data"]
    else:  # the one gather and the one reduction of the step are all that crosses data
        over_data = found.time.communication.get("data", 0.0)
        assert parts.gather + parts.reduce >= over_data > 0


def test_on_cpus_too_where_idle_ticks_cost_nothing():
    report = plan(preset("nano"), "cpu:8", global_batch=32, seq_len=64, stage=4)
    found = fitting(report)[0]
    np.testing.assert_allclose(report.plot_timeline().get_xlim()[1], found.time.total)


def test_where_nothing_fits_there_is_no_timeline(nothing, tmp_path):
    assert nothing.remedy in nothing.plot().get_title(loc="left")
    assert nothing.remedy in nothing.plot_memory().get_title(loc="left")
    with pytest.raises(UserError, match="nothing fits"):
        nothing.plot_timeline()
    nothing.save(tmp_path / "nothing.png")


@pytest.mark.parametrize(("rank", "message"), [(0, "rank=0 must be"), (99, "at most")])
def test_unknown_rank(limited, rank, message):
    with pytest.raises(UserError, match=message):
        limited.plot_timeline(rank)


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_saves_all_in_one_and_shows_nothing(limited, tmp_path, suffix):
    path = tmp_path / f"plan{suffix}"
    limited.save(path)
    assert path.stat().st_size > 10_000
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.jpeg", "must end in .png"), ("x", "must end in"), ("no/x.png", "does not exist; make it")],
)
def test_unknown_path(limited, tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        limited.save(tmp_path / name)


def test_without_matplotlib(limited, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (limited.plot, limited.plot_memory, limited.plot_timeline):
        with pytest.raises(UserError, match=r"pip install 'hybrid-jax\[notebook\]'"):
            draw()
