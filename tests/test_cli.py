"""The command line: a run from end to end, a clean stop, and one line for every mistake."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_jax.cli import main

ROOT = Path(__file__).parents[1]
TEXT = "In the beginning was the Word, and the Word was with God.\n" * 60

CONFIG = """
cpu_devices: 8
model: {preset: nano, num_layers: 2, embed_dim: 16, mlp_dim: 32, num_heads: 2, max_length: 64}
strategy: {stage: 2, data: 2, model: 2, microbatches: 2, precision: f32}
optimizer: {learning_rate: 1e-2, schedule: constant}
data: {source: %s, global_batch: 8, seq_len: 16, validation_fraction: 0.1}
train: {steps: 3, log_every: 1, eval_every: 2, output_dir: %s, sample_tokens: 4, sample_prompt: In}
"""


@pytest.fixture
def config(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG % (text, tmp_path / "out"))
    return path


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hybrid_jax", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def test_train_logs_evaluates_and_samples(config, capsys):
    assert main(["train", str(config)]) == 0
    output = capsys.readouterr().out
    assert "8 cpu devices (stage 2 x data 2 x model 2), 1f1b schedule" in output
    found = records(config.parent / "out")
    assert [record["step"] for record in found if "loss" in record] == [1, 2, 3]
    held_out = {record["step"]: record["eval_loss"] for record in found if "eval_loss" in record}
    assert list(held_out) == [2, 3]
    losses = [line.split() for line in output.splitlines() if line.startswith("held-out loss of")]
    nats = [float(words[words.index("nats,") - 1]) for words in losses]
    bits = [float(words[words.index("bits") - 1]) for words in losses]
    assert nats[0] == pytest.approx(held_out[3], abs=1e-3)
    assert bits == pytest.approx([x / 0.6931 for x in nats], abs=2e-3)
    assert output.partition("sample:\n")[2].startswith("In")


def test_two_runs_of_one_config_are_the_same(config):
    for name in ("a", "b"):
        assert main(["train", str(config), f"train.output_dir={config.parent / name}"]) == 0
    first, second = (
        [
            (record["step"], record.get("loss"), record.get("eval_loss"))
            for record in records(folder)
        ]
        for folder in (config.parent / "a", config.parent / "b")
    )
    assert first == second


def test_inspect_prints_the_parameter_table(config, capsys):
    assert main(["inspect", str(config)]) == 0
    output = capsys.readouterr().out
    assert "blocks/" in output
    assert "stage" in output
    assert "error" not in output


def test_inspect_writes_json_and_measures_the_bubble(config, capsys):
    numbers = config.with_name("report.json")
    options = ["--json", str(numbers), "--measure", "model.num_layers=2"]
    assert main(["inspect", str(config), *options]) == 0
    assert "measured" in capsys.readouterr().out
    content = json.loads(numbers.read_text())
    assert content["flags"] == []
    assert content["bubble"]["measured"] is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "/nowhere/a.json"], "the folder /nowhere does not exist; make it"),
        (["--json", "/tmp"], "--json /tmp is a folder: give the path of a file"),
        (["--measure", "strategy.stage=1", "strategy.data=4"], "stage=1 has no bubble to measure"),
        (["data.global_batch=6"], "must be a multiple of 4"),
    ],
)
def test_inspect_refuses_in_one_line(config, capsys, options, message):
    assert main(["inspect", str(config), *options]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1


def test_inspect_lists_every_parameter_that_does_not_fit(config, capsys):
    assert main(["inspect", str(config), "model.mlp_dim=33"]) == 2
    captured = capsys.readouterr()
    listed = [line for line in captured.out.splitlines() if line.startswith("error: blocks/mlp/")]
    assert len(listed) == 3
    assert captured.err.count("\n") == 1


def test_bench_prints_a_table_and_writes_json(config, capsys):
    strategies, numbers = config.with_name("strategies.yaml"), config.with_name("bench.json")
    strategies.write_text("- {stage: 1, data: 1, model: 1} # one device\n")
    options = ["--strategies", str(strategies), "--steps", "1", "--json", str(numbers)]
    assert main(["bench", str(config), *options, "model.num_layers=1", "strategy.stage=1"]) == 2
    assert "cpu_devices" in capsys.readouterr().err  # the last overrides were read
    assert main(["bench", str(config), *options]) == 0
    assert "plain JAX" in capsys.readouterr().out
    assert len(json.loads(numbers.read_text())["rows"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "no command: choose one of train, plan, inspect, bench, data, or see "
            "`hybrid-jax --help`.",
        ),
        (
            ["trian", "{config}"],
            "unknown command 'trian': choose one of train, plan, inspect, bench, data. "
            "Did you mean 'train'?",
        ),
        (
            ["train"],
            "no config: give the path of a YAML file, such as `hybrid-jax train "
            "configs/quickstart.yaml`.",
        ),
        (
            ["train", "{config}", "--steps"],
            "unknown option '--steps': see `hybrid-jax train --help`; fields of the config are set "
            "as section.field=value.",
        ),
        (
            ["bench", "{config}", "--steps", "x"],
            "argument --steps: invalid int value: 'x': see `hybrid-jax bench --help`.",
        ),
        (
            ["bench", "{config}", "--json", "{folder}/no/x.json"],
            "--json {folder}/no/x.json: the folder {folder}/no does not exist; make it.",
        ),
        (
            ["train", "{config}", "optimizer.learning_rat=1"],
            "unknown config field 'optimizer.learning_rat'. "
            "Did you mean 'optimizer.learning_rate'?",
        ),
        (
            ["train", "{config}", "train.steps=soon"],
            "train.steps='soon' must be a whole number, at least 1.",
        ),
        (
            ["train", "{config}", "model.preset=nanno"],
            "unknown model preset 'nanno': choose one of nano, gpt2-small, gpt2-medium, "
            "gpt2-large, gpt2-xl, gpt3-175b, llama2-7b, llama2-13b, llama2-70b. "
            "Did you mean 'nano'?",
        ),
        (
            ["train", "{config}", "strategy.data=4"],
            "cpu_devices=8 must be the product of the strategy's axes, stage=2 x data=4 x model=2: "
            "set cpu_devices=16, or change an axis.",
        ),
        (
            ["train", "{config}", "strategy.stage=4", "strategy.data=1"],
            "model.num_layers=2 leaves stages without a layer: stage=4 x chunks=1 needs at least 4 "
            "layers; add layers, or use fewer stages or chunks.",
        ),
        (
            ["train", "{config}", "strategy.model=4", "strategy.data=1"],
            "model.num_heads=2 must be a multiple of strategy.model=4, which splits heads: use 4, "
            "or another model axis.",
        ),
        (
            ["train", "{config}", "data.global_batch=10"],
            "data.global_batch=10 must be a multiple of 4 (2 data shards x "
            "strategy.microbatches=2): use 8 or 12, or change strategy.microbatches.",
        ),
        (
            ["train", "{config}", "data.source={folder}/txt.txt"],
            "no text '{folder}/txt.txt': give the path of a text file or of a prepared corpus, or "
            "'kjv' for the bundled text. Did you mean 'text.txt'?",
        ),
        (
            ["train", "{config}", "data.source={folder}/empty.txt"],
            "the text '{folder}/empty.txt' is empty (0 bytes): choose another.",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(config, capsys, arguments, message):
    (config.parent / "empty.txt").write_text("")
    names = {"config": config, "folder": config.parent}
    assert main([argument.format(**names) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message.format(**names)}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["cpu_devices=null", "strategy.data=1"],
            ("stage=2 x model=2", "need 4 devices", "there are 8", "force_cpu_devices(4)"),
        ),
        (
            ["model.mlp_dim=33"],
            ("blocks/mlp/", "33", "model=2"),
        ),
        (
            ["train.output_dir=/dev/null/x"],
            ("train.output_dir='/dev/null/x' must be a folder, but '/dev/null' is none",),
        ),
        (
            ["strategy.rules=megatrn"],
            ("megatrn", "Did you mean", "megatron"),
        ),
    ],
)
def test_a_layout_that_does_not_fit_is_one_line(config, capsys, overrides, words):
    assert main(["train", str(config), *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_help_and_mistakes_in_a_process_of_their_own(config):
    result = run("--help")
    assert result.returncode == 0
    assert "train" in result.stdout
    assert "inspect" in result.stdout
    result = run("train", str(config), "train.stepz=1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: unknown config field 'train.stepz'. Did you mean 'train.steps'?\n"
    )


def test_ctrl_c_stops_after_the_step_and_still_reports(config):
    """With a folder it saves instead, see tests/test_faults.py."""
    overrides = ["train.steps=100000", "train.output_dir=null"]
    command = [sys.executable, "-u", "-m", "hybrid_jax", "train", str(config), *overrides]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step"):
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "SIGINT: stopping after this step" in errors
    assert "Traceback" not in errors
    assert "stopped after" in output
    assert "held-out loss of model" in output
    assert "sample:\nIn" in output
