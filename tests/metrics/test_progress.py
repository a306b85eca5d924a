"""Progress: plain lines outside a terminal, a bar that ends cleanly in one."""

import io

import pytest
from rich.console import Console

from hybrid_jax.metrics.progress import ProgressBar, describe

VALUES = {"loss": 2.5, "step_seconds": 0.5, "tokens_per_second": 8192.0, "mfu": 0.415}


def show(*, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, color_system=None)
    bar = ProgressBar(20, console)
    bar.write(8, VALUES)
    bar.write(8, {"eval_loss": 2.25})
    bar.close()
    return file.getvalue()


def test_plain_lines_outside_a_terminal():
    assert show(terminal=False).splitlines() == [
        "step  8/20  loss 2.500  8,192 tokens/s  MFU 41.5%  0:06 left",
        "step  8/20  held-out loss 2.250",
    ]


@pytest.mark.parametrize(("share", "shown"), [(0.009, ""), (0.1234, "  input wait 12%")])
def test_waiting_for_input_is_shown_where_it_matters(share, shown):
    assert describe({"loss": 2.5, "input_wait_share": share}, 3) == f"loss 2.500{shown}"


def test_skipped_updates_are_shown():
    assert describe({"loss": 2.5, "skipped": 0.0}, 1) == "loss 2.500"
    assert describe({"loss": 2.5, "skipped": 3.0}, 1) == "loss 2.500  3 skipped"


def test_a_bar_in_a_terminal():
    text = show(terminal=True)
    assert "8/20" in text
    assert "8,192 tokens/s" in text
    assert "step  8/20  held-out loss 2.250" in text
