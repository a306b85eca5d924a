"""Whoever saves: the folder before the first step, the same number twice, what stays on disk."""

import json
import shutil
import warnings

import jax
import numpy as np
import optax
import pytest
from tiny import decoder

from hybrid_jax import Checkpointer, RunError, Strategy, UserError, make_mesh, make_train_step
from hybrid_jax.checkpoint import housekeeping, integrity

STRATEGY = Strategy(data=8, precision="f32")


def make_train(tx, **sizes):
    return make_train_step(decoder(**sizes), tx, STRATEGY, make_mesh(STRATEGY))


@pytest.fixture(scope="module")
def train():
    return make_train(optax.sgd(1e-2))


def at_step(train, step, seed=0):
    state = train.init(jax.random.key(seed))
    number = jax.device_put(np.int32(step), state.step.sharding)
    return type(state)(**{**vars(state), "step": number})


def save(folder, train, *steps, seed=0, losses=None, **options):
    with Checkpointer(folder, **options) as checkpointer:
        for step in steps:
            metrics = {} if losses is None else {"eval_loss": losses[step]}
            checkpointer.save(train, at_step(train, step, seed), metrics=metrics)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def nothing_is_said():
    """No saving warns unless a test expects it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def test_another_state_under_the_same_number(tmp_path, train):
    save(tmp_path, train, 3)
    expected = at_step(train, 3)
    with Checkpointer(tmp_path) as checkpointer:
        message = (
            r"step 3 cannot be saved in .*, which has another state of that step, saved "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d: 'params/.*' differs \(one of \d+\); restore that one"
        )
        with pytest.raises(UserError, match=message):
            checkpointer.save(train, at_step(train, 3, seed=1))
        restored = checkpointer.restore(train)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    assert names(tmp_path) == ["3"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: make_train(optax.adam(1e-2)), r"'opt_state/.*' is there once only \(one of"),
        (
            lambda: make_train(optax.sgd(1e-2), vocab_size=32),
            r"float32\[64, 16\] and float32\[32, 16\]",
        ),
    ],
)
def test_another_model_or_optimizer_under_the_same_number(tmp_path, train, other, message):
    save(tmp_path, train, 3)
    with pytest.raises(UserError, match=message):
        save(tmp_path, other(), 3)


def test_the_same_state_with_other_words(tmp_path, train):
    save(tmp_path, train, 3, losses={3: 1.5})
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "3").rglob("*")}
    save(tmp_path, train, 3, losses={3: 2.5})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "3").rglob("*")} == before


def test_the_same_state_whose_step_was_not_verified(tmp_path, train):
    """The run was killed between writing the step and reading it back."""
    save(tmp_path, train, 3)
    stamp = tmp_path / "3" / "verified.0-of-1.json"
    stamp.unlink()
    save(tmp_path, train, 3)
    assert stamp.exists()
    stamp.unlink()
    for path in (tmp_path / "3" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=r"step 3 in .*cannot be read back.*there is no earlier one"):
        save(tmp_path, train, 3)


def test_a_number_whose_step_cannot_be_read(tmp_path, train):
    save(tmp_path, train, 3)
    (tmp_path / "3" / "manifest" / "metadata").write_text("{}")
    with pytest.raises(UserError, match=r"which has a damaged one of that step: .*; move it away"):
        save(tmp_path, train, 3)


def test_a_renamed_step_does_not_stand_for_another(tmp_path, train):
    """It was taken for step 20, and nothing was saved."""
    save(tmp_path, train, 10)
    (tmp_path / "10").rename(tmp_path / "20")
    message = "damaged one .* its manifest is of step 10, but its folder has the name of step 20"
    with pytest.raises(UserError, match=message):
        save(tmp_path, train, 20)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.prepare()
        with (
            pytest.warns(UserWarning, match="step 20 in .* is damaged"),
            pytest.raises(UserError, match="every checkpoint"),
        ):
            checkpointer.restore(train)
        checkpointer.save(train, at_step(train, 20))
        checkpointer.wait()
        assert names(tmp_path) == ["20", "20.damaged"]


def test_what_is_no_step_is_named_once_and_ignored(tmp_path, train):
    save(tmp_path, train, 3)
    for name in ("007", "1e3", "٣", "10 copy", "-1", "9" * 11, "4.old"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "2.damaged").mkdir()
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.warns(UserWarning) as caught:
            checkpointer.prepare()
        strays = "'-1', '007', '10 copy', '1e3', '4.old', '5', '99999999999', '٣'"
        told = [str(warning.message) for warning in caught]
        assert [message.partition("ignored: ")[2] for message in told] == [f"{strays}."]
        checkpointer.save(train, at_step(train, 8))
        checkpointer.wait()
        assert checkpointer.steps == [3, 8]
        assert checkpointer.restore(train).step == 8


def test_preparing_is_writing_and_constructing_is_not(tmp_path, train):
    checkpointer = Checkpointer(tmp_path / "a" / "run")
    assert names(tmp_path) == []
    checkpointer.prepare()
    checkpointer.prepare()
    assert names(tmp_path / "a") == ["run"]
    assert names(tmp_path / "a" / "run") == []
    checkpointer.close()


def test_a_folder_that_cannot_be_written_to_is_found_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    checkpointer = Checkpointer(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"cannot be written to: .*; choose another folder"):
        checkpointer.prepare()
    checkpointer.close()


@pytest.mark.parametrize(("last", "best"), [(1, 0), (2, 1), (3, 2)])
def test_exactly_the_wanted_steps_stay(tmp_path, train, last, best):
    losses = dict(zip(range(1, 8), (3.0, 1.0, 2.0, 2.5, 2.4, 2.6, 2.7), strict=True))
    with Checkpointer(tmp_path, keep_last=last, keep_best=best) as checkpointer:
        for step, loss in losses.items():
            checkpointer.save(train, at_step(train, step), metrics={"eval_loss": loss})
            checkpointer.wait()
            so_far = range(1, step + 1)
            kept = {*so_far[-last:], *sorted(so_far, key=losses.get)[:best]}
            assert names(tmp_path) == sorted(map(str, kept))
            assert checkpointer.last_good_step == step


def test_an_unverified_step_of_a_killed_run_does_not_stay_forever(tmp_path, train):
    save(tmp_path, train, 1, 2, keep_last=2)
    (tmp_path / "2" / "verified.0-of-1.json").unlink()
    save(tmp_path, train, 3, 4, keep_last=2)
    assert names(tmp_path) == ["3", "4"]


def test_a_run_killed_while_it_deletes_leaves_whole_steps(tmp_path, train, monkeypatch):
    """The step has its new name, but its files are still there."""
    monkeypatch.setattr(housekeeping, "_remove", lambda _: None)
    save(tmp_path, train, 1, 2, keep_last=1)
    assert names(tmp_path) == ["1.deleted", "2"]
    monkeypatch.undo()
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps == [2]
        checkpointer.prepare()
    assert names(tmp_path) == ["2"]


def test_a_step_that_cannot_be_deleted_is_named(tmp_path, train, monkeypatch):
    def refuse(_):
        raise PermissionError(1, "Operation not permitted")

    save(tmp_path, train, 1, keep_last=1)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    (tmp_path / "1.deleted").mkdir()
    with pytest.warns(UserWarning, match=r"1\.deleted cannot be removed: .*remove it by hand"):
        Checkpointer(tmp_path).prepare()


def test_stamps_of_runs_with_other_numbers_of_processes(tmp_path, train):
    """Of two processes one was killed before it had stamped; then one process verified all."""
    save(tmp_path, train, 3)
    stamp = tmp_path / "3" / "verified.0-of-1.json"
    content = json.loads(stamp.read_text())
    (tmp_path / "3" / "verified.1-of-2.json").write_text(json.dumps(content))
    assert integrity.is_verified(tmp_path / "3")
    stamp.unlink()
    assert not integrity.is_verified(tmp_path / "3")


def test_damage_found_in_a_step_that_was_asked_for_is_set_aside_by_the_next_save(tmp_path, train):
    save(tmp_path, train, 1, 2)
    (tmp_path / "2" / "manifest" / "metadata").write_text("{}")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(UserError, match=r"step 2 in .* is damaged"):
            checkpointer.restore(train, 2)
        assert names(tmp_path) == ["1", "2"]
        checkpointer.save(train, at_step(train, 2))
    assert names(tmp_path) == ["1", "2", "2.damaged"]
