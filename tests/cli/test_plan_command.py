"""`hybrid-jax plan`: a table, a strategy, a file; one line for mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from hybrid_jax.cli import main
from hybrid_jax.config.strategy import Strategy

CONFIG = str(Path(__file__).parents[2] / "configs" / "llama2-7b-v5p-64.yaml")


def test_prints_plans_and_the_best_strategy(tmp_path, capsys):
    path = tmp_path / "plans.json"
    options = ["--devices", "v5p:4x4x4", "--top", "3", "--json", str(path)]
    assert main(["plan", CONFIG, *options, "data.global_batch=128", "strategy.microbatches=4"]) == 0
    output = capsys.readouterr().out
    assert "Strategies, by predicted step time" in output
    best = Strategy(**yaml.safe_load(output[output.index("replica: 1") :]))
    assert best.num_devices == 64
    assert json.loads(path.read_text())["global_batch"] == 128


TINY = """
model: {preset: nano, num_layers: 2, embed_dim: 16, mlp_dim: 32, num_heads: 2, max_length: 64}
data: {source: kjv, global_batch: 4, seq_len: 16}
"""


def test_verifies_in_a_child_process(tmp_path, capsys):
    config, plans = tmp_path / "tiny.yaml", tmp_path / "plans.json"
    config.write_text(TINY)
    options = ["--devices", "cpu:2", "--verify", "1", "--json", str(plans)]
    assert main(["plan", str(config), *options]) == 0
    captured = capsys.readouterr()
    assert "Predicted beside compiled" in captured.out
    assert captured.err == ""  # progress is for terminals
    (found,) = json.loads(plans.read_text())["verified"]
    assert found["verdict"] == "fits"
    best = Strategy(**yaml.safe_load(captured.out[captured.out.index("replica: 1") :]))
    assert best == Strategy(**found["strategy"])


def test_saves_pictures(tmp_path, capsys):
    for name, devices, status in (("fits.png", "v5p:4x4x4", 0), ("not.svg", "v5e:2x2", 2)):
        path = tmp_path / name
        assert main(["plan", CONFIG, "--devices", devices, "--save", str(path)]) == status
        assert path.stat().st_size > 10_000
    assert "nothing fits" in capsys.readouterr().err


def test_saving_needs_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    options = ["--devices", "v5p:4x4x4", "--save", str(tmp_path / "x.png")]
    assert main(["plan", CONFIG, *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: --save needs matplotlib")
    assert captured.out == ""


def test_mistakes(capsys):
    for options, message in (
        ([], "nothing fits on cpu:8"),
        (["--devices", "v5q:8"], "Did you mean 'v5p'?"),
        (["--devices", "v5p:4x4x4", "--json", "no/such/folder/x.json"], "does not exist"),
        (["--devices", "v5p:4x4x4", "--save", "no/such/folder/x.png"], "does not exist"),
        (["--devices", "v5p:4x4x4", "--json", "/proc/plans.json"], "cannot be written"),
        (["--devices", "v5p:4x4x4", "--save", "/proc/plans.png"], "cannot be written"),
        (["--devices", "v5p:4x4x4", "--save", "plan.jpg"], "must end in .png, .pdf or .svg"),
        (["--devices", "v5p:4x4x4", "--save", "plan"], "must end in .png, .pdf or .svg"),
        (["--devices", "v5e:2x2"], "nothing fits on v5e:2x2"),
        (["--devices", "v5e:2x2"], "such devices would do"),
        (["--devices", "v5e:3x2"], "use 'v5e:2x4'"),
        (["--devices", "v5e:2x2", "--verify", "0"], "verify=0 must be a whole number, at least 1"),
        (["--devices", "v5e:2x2", "--verify", "all"], "--verify: invalid int value: 'all'"),
        (["--devices", "v5e:2x2", "--verify"], "--verify: expected one argument"),
    ):
        assert main(["plan", CONFIG, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
