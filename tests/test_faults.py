"""What `hybrid-jax train` does when it is stopped, is killed, diverges or cannot save."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fill_disk
import kill
import pytest
from processes import ROOT, finish_processes, start_processes

from hybrid_jax.runtime.lock import FolderLock


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(kill.CONFIG)
    return path


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


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


def test_a_signal_saves_and_the_same_command_resumes(tmp_path, config):
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
    assert "the same command resumes from there" in out
    saved = [int(path.name) for path in (stopped / "checkpoints").iterdir()]
    assert len(saved) == 1 and 3 <= saved[0] < steps
    result = train(config, *options, f"train.output_dir={stopped}")
    assert result.returncode == 0, result.stderr
    assert f"resuming from step {saved[0]}" in result.stdout
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
    assert re.search("the last good (one|checkpoint) is step 4", message)
    result = train(config, *small, "train.steps=8")
    assert result.returncode == 0, result.stderr
    assert "resuming from step 4" in result.stdout


def test_a_disk_that_only_tensorboard_finds_full_ends_the_run(tmp_path, config):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/null")
    options = [f"train.output_dir={tmp_path}", "checkpoint.every=null", "train.eval_every=null"]
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "bash"]
    result = subprocess.run(
        [*limited, *command(config, *options)], capture_output=True, text=True, timeout=300
    )
    message = one_line(result, 1)
    assert "events.out.tfevents." in message and "written to: File too large" in message
    assert message.endswith(", and no checkpoint was saved.")


def test_a_full_disk_between_two_checkpoints_names_the_last_good_one(tmp_path, config):
    small = [f"train.output_dir={tmp_path}", "train.steps=4", "checkpoint.every=2"]
    assert train(config, *small).returncode == 0
    more = command(config, *small, "train.steps=400", "checkpoint.every=null")
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "bash"]
    result = subprocess.run([*limited, *more], capture_output=True, text=True, timeout=300)
    message = one_line(result, 1)
    assert re.search("(metrics.jsonl|events.*) cannot be written to: File too large", message)
    assert f"the last good checkpoint is step 4 in {tmp_path}/checkpoints" in message
    json_lines = (tmp_path / "metrics.jsonl").read_text()
    assert json_lines.endswith("}\n")


def test_stdout_on_a_full_disk_ends_the_run(config):
    options = ["train.steps=4", "checkpoint.every=null"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            command(config, *options), stdout=full, stderr=subprocess.PIPE, text=True, timeout=300
        )
    assert one_line(result, 1) == "error: stdout: No space left on device"


def wait_for_step(process, folder: Path, step: int):
    end = time.monotonic() + 120
    while kill.last_step(folder / "metrics.jsonl") < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"at step {kill.last_step(folder / 'metrics.jsonl')}"
        time.sleep(0.01)


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path, config):
    options = [f"train.output_dir={tmp_path}", "train.steps=100000", "train.eval_every=null"]
    process = subprocess.Popen(command(config, *options), stderr=subprocess.PIPE, text=True)
    wait_for_step(process, tmp_path, 3)
    before = (tmp_path / "metrics.jsonl").read_text()
    message = one_line(train(config, *options), 2)
    assert f"'{tmp_path}' is in use by process {process.pid} on host " in message
    # Another folder, but the same checkpoints.
    other = [f"train.output_dir={tmp_path}/new", f"checkpoint.folder={tmp_path}/checkpoints"]
    message = one_line(train(config, *options, *other), 2)
    assert f"'{tmp_path}/checkpoints' is in use by process {process.pid} on host " in message
    assert process.poll() is None
    assert (tmp_path / "metrics.jsonl").read_text().startswith(before)
    process.kill()
    process.communicate()
    step = kill.last_step(tmp_path / "metrics.jsonl")
    result = train(config, *options, f"train.steps={step + 1}")
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.rglob("run.lock"))


def test_a_terminal_that_is_paused_holds_up_no_step(tmp_path, config):
    options = [f"train.output_dir={tmp_path}", "checkpoint.every=null", "train.eval_every=null"]
    process = subprocess.Popen(
        command(config, *options, "train.steps=100000"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)  # room for about 60 steps
    wait_for_step(process, tmp_path, 200)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    steps = [int(line.split()[1].partition("/")[0]) for line in out.splitlines() if "loss" in line]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] >= 200


@pytest.mark.slow
def test_a_disk_filled_by_another_program():
    result = subprocess.run(
        [sys.executable, fill_disk.__file__, "--times", "2"],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    if result.returncode == fill_disk.CANNOT_MOUNT:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 full disks: each run ended with status 1 and resumed" in result.stdout


@pytest.mark.slow
def test_several_processes_are_refused_together(tmp_path, config):
    with FolderLock(tmp_path):
        arguments = ["-m", "hybrid_jax", "train", str(config), f"train.output_dir={tmp_path}"]
        first, second = finish_processes(start_processes(arguments, devices=1))
        assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    in_use = f"is in use by process {os.getpid()} on host"
    assert in_use in one_line(first, 2)
    assert in_use in (line := one_line(second, 2)) and line.startswith("error: process 0 ")


def test_a_folder_that_cannot_be_written_to(tmp_path, config):
    (tmp_path / "file").write_text("")
    result = train(config, f"train.output_dir={tmp_path}/file/out")
    assert f"must be a folder, but '{tmp_path}/file' is none" in one_line(result, 2)


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
