"""Whoever reads checkpoints changes nothing, finds what is there, and can watch a live run."""

import json
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import optax
import poll_live_run
import pytest
from tiny import decoder

from hybrid_jax import Checkpointer, Strategy, UserError, make_mesh, make_train_step
from hybrid_jax.checkpoint import integrity, recovery
from hybrid_jax.checkpoint.manifest import checksum

STRATEGY = Strategy(data=8, precision="f32")


@pytest.fixture(scope="module")
def train():
    return make_train_step(decoder(), optax.sgd(1e-2), STRATEGY, make_mesh(STRATEGY))


def at_step(train, step, seed=0):
    state = train.init(jax.random.key(seed))
    number = jax.device_put(np.int32(step), state.step.sharding)
    return type(state)(**{**vars(state), "step": number})


def save(folder, train, *steps, **options):
    with Checkpointer(folder, **options) as checkpointer:
        for step in steps:
            checkpointer.save(train, at_step(train, step), metrics={"eval_loss": 10.0 - step})


@pytest.fixture(scope="module")
def original(train, tmp_path_factory):
    """Steps 1, 2 and 3, each verified."""
    folder = tmp_path_factory.mktemp("saved")
    save(folder, train, 1, 2, 3, keep_last=3)
    return folder


@pytest.fixture
def saved(original, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(original, folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_is_said():
    """No reading warns unless a test expects it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def picture(folder: Path):
    """All that a writer would change: names, contents and times of every folder and file."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths]


def read_everything(folder, train):
    with Checkpointer(folder) as checkpointer:
        step = int(checkpointer.restore(train).step)
        checkpointer.restore_params()
        assert checkpointer.manifest().step == checkpointer.latest_step == step
        assert checkpointer.last_good_step == checkpointer.best_step == step
        checkpointer.wait()
    return step


def flip(folder):
    for path in (folder / "state").rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_a_folder_that_may_not_be_written_to(saved, train):
    # Of another run that is saving step 4, and has a stray folder.
    shutil.copytree(saved / "3", saved / "4.orbax-checkpoint-tmp")
    (saved / "007").mkdir()
    for path in (saved, *saved.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = picture(saved)
    assert read_everything(saved, train) == 3
    assert picture(saved) == before
    for path in (saved, *saved.rglob("*")):  # or nobody could tidy up
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_mistyped_path(tmp_path, train):
    checkpointer = Checkpointer(tmp_path / "rnu")
    assert (checkpointer.steps, checkpointer.best_step, checkpointer.last_good_step) == (
        [],
        None,
        None,
    )
    for read in (checkpointer.manifest, checkpointer.restore_params):
        with pytest.raises(UserError, match=r"no checkpoint in .*rnu, which is missing: train"):
            read()
    checkpointer.close()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_run_instead_of_its_checkpoints(tmp_path, saved):
    shutil.copytree(saved, tmp_path / "output" / "checkpoints")
    with pytest.raises(UserError, match=r"no checkpoint in .*: train first, or give '.*/che"):
        Checkpointer(tmp_path / "output").manifest()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file' cannot be read: Not a directory"):
        Checkpointer(tmp_path / "file").manifest()


@pytest.mark.parametrize("step", [None, 3])
def test_a_reader_leaves_damage_to_the_run(saved, train, step):
    flip(saved / "3")
    before = picture(saved)
    with Checkpointer(saved) as checkpointer:
        if step is None:
            with pytest.warns(UserWarning, match="step 3 in .* is damaged: .*taking the next old"):
                assert checkpointer.restore(train).step == 2
            assert checkpointer.restore(train).step == 2  # and is not warned again
        else:
            with pytest.raises(UserError, match=r"step 3 .* is damaged: .*another of \[1, 2\]"):
                checkpointer.restore(train, step)
        assert (checkpointer.steps, checkpointer.latest_step) == ([1, 2], 2)
        assert (checkpointer.last_good_step, checkpointer.best_step) == (2, 2)
    assert picture(saved) == before


def test_damage_is_forgotten_with_the_folder_that_had_it(saved, train):
    """The run has set step 3 aside and saved it anew."""
    intact = saved.parent / "intact"
    shutil.copytree(saved / "3", intact)
    flip(saved / "3")
    reader = Checkpointer(saved)
    with pytest.warns(UserWarning, match="step 3"):
        assert reader.restore(train).step == 2
    (saved / "3").rename(saved / "3.damaged")
    intact.rename(saved / "3")
    assert reader.steps == [1, 2, 3]
    assert reader.restore(train).step == 3


def deleted_after(original, saved, steps):
    """A function that does what `original` does, whereupon one of `steps` disappears each time."""

    def call(*arguments, **options):
        result = original(*arguments, **options)
        if steps:
            shutil.rmtree(saved / str(steps.pop(0)))
        return result

    return call


@pytest.mark.parametrize("place", ["manifest", "files"])
def test_steps_that_are_deleted_while_they_are_read(saved, train, place, monkeypatch):
    """First the newest one, then its successor: retention can do that to a slow reader."""
    patched = {"manifest": (recovery.StepFolder, "manifest"), "files": (integrity, "check_files")}
    owner, name = patched[place]
    monkeypatch.setattr(owner, name, deleted_after(getattr(owner, name), saved, [3, 2]))
    reader = Checkpointer(saved)
    assert reader.restore(train).step == 1
    assert reader.steps == [1]


def test_a_step_that_is_deleted_when_it_was_asked_for(saved, train, monkeypatch):
    check = deleted_after(integrity.check_files, saved, [3])
    monkeypatch.setattr(integrity, "check_files", check)
    with pytest.raises(UserError, match=r"no checkpoint of step 3 in .*choose one of 1, 2"):
        Checkpointer(saved).restore(train, 3)


def test_a_manifest_that_is_deleted_when_it_is_read(saved, monkeypatch):
    find = deleted_after(recovery.StepFolder.find, saved, [3])
    monkeypatch.setattr(recovery.StepFolder, "find", find)
    assert Checkpointer(saved).manifest().step == 2


def rewrite(path, **changes):
    """Changes a manifest as another release would have written it."""
    content = {**json.loads(path.read_text()), **changes}
    del content["checksum"]
    path.write_text(json.dumps({**content, "checksum": checksum(content)}))


def test_steps_that_are_always_deleted_before_they_are_read(saved, train, monkeypatch):
    """A run that saves faster than this process reads."""
    check_files = integrity.check_files

    def save_another(folder, *part):
        step = int(folder.name) + 1
        folder.rename(saved / str(step))
        rewrite(saved / str(step) / "manifest" / "metadata", step=step)
        check_files(folder, *part)

    monkeypatch.setattr(integrity, "check_files", save_another)
    with pytest.raises(UserError, match=r"deleted faster than they can be read: .*keep_last"):
        Checkpointer(saved).restore(train)


def test_a_step_that_is_not_verified_yet(saved, train):
    (saved / "3" / "verified.0-of-1.json").unlink()
    reader = Checkpointer(saved)
    assert (reader.restore(train).step, reader.last_good_step, reader.latest_step) == (3, 2, 3)


def test_a_step_under_another_number(saved, train):
    (saved / "3").rename(saved / "20")
    reader = Checkpointer(saved)
    message = r"its manifest is of step 3, but its folder has the name of step 20"
    with pytest.raises(UserError, match=f"step 20 in .*: {message}"):
        reader.manifest()
    with pytest.raises(UserError, match=f"step 20 in .* is damaged: {message}"):
        reader.restore_params(step=20)
    assert reader.restore(train).step == 2
    assert reader.best_step == 2


@pytest.mark.parametrize(
    ("written_by", "release"),
    [({"hybrid_jax": "9.1"}, r"with hybrid_jax 9\.1, which"), ({}, "with the release, which")],
)
def test_another_format(saved, train, written_by, release):
    rewrite(saved / "3" / "manifest" / "metadata", version=7, written_by=written_by)
    (saved / "3" / "verified.0-of-1.json").unlink()
    with Checkpointer(saved) as checkpointer:
        checkpointer.prepare()
        for read in (checkpointer.manifest, lambda: checkpointer.restore(train)):
            with pytest.raises(UserError, match=f"step 3 in .* has format version 7.*{release}"):
                read()
        assert checkpointer.steps == [1, 2, 3]  # it is not damaged
        assert checkpointer.best_step == 2


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run", "http://host/run"])
def test_a_folder_elsewhere(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is a URL, but must be a local path"):
        Checkpointer(url)
    assert list(tmp_path.iterdir()) == []


def test_ways_to_write_a_path(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    for path in ("~/run", "$HOME/run", f"file://{saved}", saved, str(saved)):
        assert Checkpointer(path).path == saved
        assert Checkpointer(path).latest_step == 3
    monkeypatch.chdir(saved.parent)
    assert Checkpointer("run").path == saved


def test_a_run_is_read_while_it_saves():
    """The whole of it, 1,000 polls, is `python tests/checkpoint/poll_live_run.py`."""
    found = poll_live_run.main(12)
    assert found["polls"] == 12
    assert found["steps read"] > 1
