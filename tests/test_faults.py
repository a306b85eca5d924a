"""What `hybrid-jax train` does when it is stopped, is killed, diverges or cannot save."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill
import pytest


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(kill.CONFIG)
    return path


def command(config, *overrides):
    return [sys.executable, "-m", "hybrid_jax", "train", str(config), *map(str, overrides)]


def train(config, *overrides):
    return subprocess.run(command(config, *overrides), capture_output=True, text=True, timeout=300)


def one_line(result, status):
    """The message of a run that ended with `status` and told why in one line."""
    assert result.returncode == status, result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert "Traceback" not in result.stderr
    return message


def digests(folder: Path, step: int):
    content = json.loads((folder / f"checkpoints/{step}/manifest/metadata").read_text())
    return {name: entry["digest"] for name, entry in content["arrays"].items()}


@pytest.mark.slow
def test_a_run_killed_four_times_is_the_undisturbed_run():
    result = subprocess.run(
        [sys.executable, kill.__file__, "--kills", "4"],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kills, 2 of them in mid-save: bit for bit" in result.stdout


def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, config):
    """Without `checkpoint.every`: the signal alone makes the checkpoint."""
    steps = 400
    options = [f"train.steps={steps}", "checkpoint.every=null", "train.eval_every=null"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train(config, *options, f"train.output_dir={straight}").returncode == 0
    process = subprocess.Popen(
        command(config, *options, f"train.output_dir={stopped}"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while kill.last_step(stopped / "metrics.jsonl") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "SIGTERM: stopping after this step" in err
    assert "the same command goes on from there" in out
    saved = [int(path.name) for path in (stopped / "checkpoints").iterdir()]
    assert len(saved) == 1 and 3 <= saved[0] < steps
    result = train(config, *options, f"train.output_dir={stopped}")
    assert result.returncode == 0, result.stderr
    assert f"going on from step {saved[0]}" in result.stdout
    assert digests(stopped, steps) == digests(straight, steps)


def test_a_run_that_diverges_names_its_last_good_checkpoint(tmp_path, config):
    result = train(
        config,
        f"train.output_dir={tmp_path}",
        "optimizer.learning_rate=1e30",
        "optimizer.clip_norm=null",
        "train.max_skipped=3",
        "--locate-nan",
    )
    message = one_line(result, 1)
    assert "3 updates in a row were skipped" in message
    assert "the last good checkpoint is step" in message and str(tmp_path) in message
    assert "Lower the learning rate" in message
    located = [line for line in result.stdout.splitlines() if "first not finite" in line]
    assert len(located) >= 3  # the hook that ends the run looks one step later
    assert re.fullmatch(
        r"step \d+ was skipped: first not finite: the .* for example .*", located[0]
    )


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, config):
    small = [f"train.output_dir={tmp_path}", "train.steps=4", "checkpoint.every=2"]
    assert train(config, *small).returncode == 0

    # No file may grow beyond 20 kB: what a full disk looks like to a program.
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 20; exec \"$@\"", "bash"]
    result = subprocess.run(
        [*limited, *command(config, *small, "train.steps=8")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    message = one_line(result, 1)
    assert "cannot be saved" in message and "File too large" in message
    assert "the last good one is step 4" in message
    result = train(config, *small, "train.steps=8")
    assert result.returncode == 0, result.stderr
    assert "going on from step 4" in result.stdout


def test_a_folder_that_cannot_be_written_to(tmp_path, config):
    (tmp_path / "file").write_text("")
    result = train(config, f"train.output_dir={tmp_path}/file/out")
    assert "cannot be written to" in one_line(result, 2)


def test_checkpoints_need_a_folder(config):
    assert "needs a folder: set train.output_dir" in one_line(train(config), 2)


def test_another_model_or_other_data_is_another_run(tmp_path, config):
    small = [f"train.output_dir={tmp_path}", "train.steps=4"]
    assert train(config, *small).returncode == 0
    for override, expected in [
        ("model.rope_theta=5e5", "another model: model.rope_theta was 10000.0, is 500000.0"),
        ("data.seed=7", "other data: seed=0 there, seed=7 here;"),
        ("optimizer.name=lion", "the model and the optimizer that it was saved with"),
    ]:
        message = one_line(train(config, *small, override), 2)
        assert expected in message
    result = train(config, *small, "optimizer.learning_rate=2e-2", "train.steps=6")
    assert result.returncode == 0, result.stderr
    assert "optimizer.learning_rate was 0.01, is 0.02" in result.stdout
    message = one_line(train(config, *small, "train.steps=5"), 2)
    assert "train.steps=5, but the run has made 6" in message
    typo = [f"train.output_dir={tmp_path}/new", f"checkpoint.init_from={tmp_path}/chekpoints"]
    assert "does not exist" in one_line(train(config, *typo), 2)
    assert not (tmp_path / "chekpoints").exists()
    new = [f"train.output_dir={tmp_path}/new", f"checkpoint.init_from={tmp_path}/checkpoints"]
    result = train(config, *new, "train.steps=4", "optimizer.name=lion", "data.seed=7")
    assert result.returncode == 0, result.stderr
    assert "parameters from" in result.stdout
