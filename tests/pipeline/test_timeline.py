"""The printed and the drawn timeline show what the tables say."""

import io
import re
import sys

import matplotlib
import numpy as np
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.picture import plot_timeline
from hybrid_jax.pipeline.schedules import forward_only, schedule

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TABLES = [
    schedule("gpipe", 2, 3),
    schedule("1f1b", 4, 12),
    schedule("interleaved", 3, 6, chunks=2),
    forward_only(2, 4, chunks=2),
]
IDS = [table.name for table in TABLES]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def printed(table) -> str:
    file = io.StringIO()
    table.print(file)
    return file.getvalue()


def cells_of_stage(text: str, stage: int) -> list[str]:
    rows = re.findall(rf"^stage {stage} +(.*)$", text, flags=re.MULTILINE)
    return " ".join(rows).split()


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_print_shows_every_run_in_order(table, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    text = printed(table)
    assert max(map(len, text.splitlines()[1:])) <= 70
    assert "\x1b" not in text
    suffix = ".{}" if table.chunks > 1 else ""
    for stage in range(table.stages):
        expected = []
        for tick in range(table.num_ticks):
            for kind in "fb":
                microbatch = getattr(table, f"{kind}_microbatch")[tick]
                chunk = getattr(table, f"{kind}_chunk")[tick, stage]
                if microbatch[stage] >= 0:
                    expected.append(f"{kind.upper()}{microbatch[stage]}" + suffix.format(chunk))
                elif (microbatch >= 0).any():
                    expected.append("··")
        assert cells_of_stage(text, stage) == expected


def test_print_numbers_all_ticks(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    table = schedule("1f1b", 4, 12)
    numbers = " ".join(re.findall(r"^tick +(.*)$", printed(table), flags=re.MULTILINE)).split()
    assert numbers == [str(tick) for tick in range(table.num_ticks)]


def test_print_goes_to_stdout_and_is_coloured_on_a_terminal(monkeypatch, capsys):
    table = schedule("1f1b", 2, 3)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    table.print()
    coloured = capsys.readouterr().out
    monkeypatch.delenv("FORCE_COLOR")
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == printed(table)


def bars(ax, stage: int) -> list[tuple[float, float]]:
    """Returns (start, stop) of the drawn cells of a stage, the grey background left out."""
    extents = []
    for collection in ax.collections:
        boxes = [path.get_extents() for path in collection.get_paths()]
        if boxes[0].ymin < stage < boxes[0].ymax:
            extents.append([(box.x0, box.x1) for box in boxes])
    background, *drawn = sorted(extents, key=lambda spans: -(spans[0][1] - spans[0][0]))
    assert len(background) == 1
    return sorted(span for spans in drawn for span in spans)


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_drawn_cells_fill_the_busy_time_without_overlap(table):
    ax = table.plot(f_cost=1.0, b_cost=1.5)
    simulation = table.simulate(1.0, 1.5)
    for stage in range(table.stages):
        spans = np.array(bars(ax, stage))
        assert (spans[1:, 0] >= spans[:-1, 1] - 1e-9).all()
        np.testing.assert_allclose((spans[:, 1] - spans[:, 0]).sum(), simulation.busy[stage])
    np.testing.assert_allclose(ax.get_xlim(), [0, simulation.total])


def test_plot_numbers_the_cells_and_names_schedule_stages_and_bubble():
    table = schedule("1f1b", 2, 3)
    ax = table.plot()
    numbers = sorted(int(text.get_text()) for text in ax.texts)
    assert numbers == sorted(2 * 2 * [0, 1, 2])
    assert ax.get_title(loc="left") == "1f1b: bubble 33.3 % of the work"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["stage 0", "stage 1"]


@pytest.mark.parametrize("table", TABLES[:3], ids=IDS[:3])
def test_every_stage_has_its_share_of_each_head_between_f_and_b(table):
    ax = table.plot(f_cost=1.0, b_cost=1.5, head_cost=0.6)
    simulation = table.simulate(1.0, 1.5, 0.6)
    np.testing.assert_allclose(ax.get_xlim(), [0, simulation.total])
    for stage in range(table.stages):
        spans = np.array(bars(ax, stage))
        assert (spans[1:, 0] >= spans[:-1, 1] - 1e-9).all()
        np.testing.assert_allclose((spans[:, 1] - spans[:, 0]).sum(), simulation.busy[stage])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["F", "head", "B"]


def test_what_stands_before_and_after_the_ticks():
    table = schedule("1f1b", 2, 3)
    ax = plot_timeline(table, before={"gather": 2.0}, after={"reduce": 3.0, "update": 0.1})
    total = table.simulate().total
    np.testing.assert_allclose(ax.get_xlim(), [0, 2.0 + total + 3.1])
    first = min(start for start, stop in bars(ax, 0) if stop - start == 1.0)
    np.testing.assert_allclose(first, 2.0)
    names = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert (names["gather"], names["reduce"]) == (1.0, 2.0 + total + 1.5)
    assert "update" not in names  # too narrow for a name


def test_chunks_have_their_own_shades():
    ax = schedule("interleaved", 2, 4, chunks=3).plot()
    colors = {tuple(color) for cells in ax.collections for color in cells.get_facecolor()}
    assert len(colors) == 1 + 2 * 3


def test_plots_share_an_x_axis_with_stage_0_on_top():
    _, axes = plt.subplots(3, 1, sharex=True, sharey=True)
    for table, ax in zip(
        [schedule("gpipe", 2, 4), schedule("1f1b", 2, 4), schedule("interleaved", 2, 4, chunks=2)],
        axes,
        strict=True,
    ):
        assert table.plot(ax) is ax
        low, high = ax.get_ylim()
        assert low > high
    np.testing.assert_allclose(axes[2].get_xlim(), [0, schedule("gpipe", 2, 4).simulate().total])
    assert [ax.get_xlabel() for ax in axes] == ["", "", "time"]


def test_a_crowded_plot_has_no_unreadable_numbers():
    _, ax = plt.subplots(figsize=(2, 1))
    assert not schedule("1f1b", 4, 64).plot(ax).texts


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(UserError, match=r"pip install 'hybrid-jax\[notebook\]'"):
        schedule("1f1b", 2, 2).plot()
