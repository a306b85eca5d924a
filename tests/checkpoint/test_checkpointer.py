"""Saving and restoring: any layout to any layout, retention, damage, failures."""

import contextlib
import json
import re
import resource
import shutil
import signal
import warnings

import jax
import numpy as np
import optax
import pytest
from tiny import decoder, plain_batch

from hybrid_jax import Checkpointer, RunError, Strategy, UserError, make_mesh, make_train_step
from hybrid_jax.checkpoint import integrity
from hybrid_jax.checkpoint.manifest import Manifest

LAYOUT = Strategy(data=2, stage=2, model=2, microbatches=2)


def make_train(strategy=LAYOUT, tx=None, **sizes):
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    return make_train_step(decoder(**sizes), tx or optax.adamw(1e-2), strategy, mesh)


@pytest.fixture(scope="module")
def train():
    return make_train()


@pytest.fixture(scope="module")
def state(train):
    state = train.init(jax.random.key(0))
    return train.step(state, plain_batch())[0]


@pytest.fixture
def small_files():
    """No file may grow beyond a size: what a full disk looks like to a program."""

    @contextlib.contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limit


def at_step(state, step):
    number = jax.device_put(np.int32(step), state.step.sharding)
    return type(state)(**{**vars(state), "step": number})


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


def save(checkpointer, train, state, step, **metrics):
    checkpointer.save(train, at_step(state, step), metrics=metrics)
    checkpointer.wait()


def test_what_was_saved_comes_back(tmp_path, train, state):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(train, state, metrics={"loss": 2.5}, config={"data": "abc"})
    with Checkpointer(tmp_path) as checkpointer:
        restored = checkpointer.restore(train)
        assert_same(restored, state)
        for leaf, sharding in zip(
            jax.tree.leaves(restored), jax.tree.leaves(train.shardings), strict=True
        ):
            assert leaf.sharding == sharding
        manifest = checkpointer.manifest()
    assert (manifest.step, manifest.metrics) == (1, {"loss": 2.5})
    assert manifest.config["data"] == "abc"
    assert manifest.config["model"]["num_layers"] == 4
    assert manifest.strategy["stage"] == 2
    query = manifest.arrays["params/blocks/attention/q/kernel"]
    assert (query.shape, query.axes) == ((4, 16, 4, 4), ("layers", "embed", "heads", "head_dim"))


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path, train):
    state = train.init(jax.random.key(0))
    expected = jax.device_get(state)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(train, state)
        for _ in range(3):
            state, _ = train.step(state, plain_batch())
        checkpointer.wait()
        assert_same(checkpointer.restore(train), expected)


def test_parameters_alone(tmp_path, train, state):
    other = make_train(Strategy(model=2, data=4), optax.sgd(1e-2))
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, train, state, 1)
        on_host = checkpointer.restore_params()
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host))
        assert_same(on_host, train.canonical_params(state))
        placed = checkpointer.restore_params(other)
    assert_same(placed, train.canonical_params(state))
    assert jax.tree.leaves(placed)[0].sharding == jax.tree.leaves(other.shardings.params)[0]


def test_the_last_and_the_best_stay(tmp_path, train, state):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 2.4, 6: 2.6}
    with Checkpointer(tmp_path, keep_last=2, keep_best=1) as checkpointer:
        for step, loss in losses.items():
            save(checkpointer, train, state, step, eval_loss=loss)
        assert checkpointer.steps == [2, 5, 6]
        assert (checkpointer.latest_step, checkpointer.best_step) == (6, 2)
    with Checkpointer(tmp_path, mode="max") as checkpointer:
        assert checkpointer.best_step == 6


def test_nothing_is_deleted_before_its_successor_is_verified(tmp_path, train, state, monkeypatch):
    monkeypatch.setattr("hybrid_jax.checkpoint.integrity.stamp", lambda *_: None)
    with Checkpointer(tmp_path, keep_last=1, keep_best=0) as checkpointer:
        for step in range(1, 5):
            save(checkpointer, train, state, step)
        assert checkpointer.steps == [1, 2, 3, 4]


def test_saving_twice_is_saving_once(tmp_path, train, state):
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, train, state, 3)
        save(checkpointer, train, state, 3)
        assert checkpointer.steps == [3]
        with pytest.raises(UserError, match=r"step 2 cannot be saved .* has step 3"):
            save(checkpointer, train, state, 2)


def damage(folder, what):
    # In every file of arrays: which of them is superseded depends on when they were written.
    for arrays in (folder / "state").rglob("d/*"):
        content = bytearray(arrays.read_bytes())
        if what == "flipped":
            for place in range(0, len(content), len(content) // 16):
                content[place] ^= 4
            arrays.write_bytes(content)
        elif what == "truncated":
            arrays.write_bytes(content[: min(1000, len(content) // 2)])
        elif what == "missing":
            arrays.unlink()
    if what == "no manifest":
        shutil.rmtree(folder / "manifest")
    elif what == "edited manifest":
        path = folder / "manifest" / "metadata"
        path.write_text(path.read_text().replace('"step": 2', '"step": 9'))


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize(
    "what", ["flipped", "truncated", "missing", "no manifest", "edited manifest"]
)
def test_a_damaged_step_is_named_and_the_one_before_taken(tmp_path, train, state, what, stamped):
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, train, state, 1)
        save(checkpointer, train, train.init(jax.random.key(5)), 2)
    damage(tmp_path / "2", what)
    if not stamped:  # killed before it was read back: the digests alone must find it
        for path in (tmp_path / "2").glob("verified.*"):
            path.unlink()
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.warns(UserWarning, match=r"step 2 in .* is damaged: .*next older"):
            assert_same(checkpointer.restore(train), state)
        assert checkpointer.steps == [1]
        with pytest.raises(UserError, match=r"step 2 .* is damaged"):
            checkpointer.restore(train, step=2)
        # Whoever only reads leaves it to the run that owns the folder.
        assert (tmp_path / "2").is_dir()
        checkpointer.prepare()
        assert (checkpointer.steps, checkpointer.latest_step) == ([1], 1)
        assert (tmp_path / "2.damaged").is_dir()
        save(checkpointer, train, state, 2)
        assert checkpointer.steps == [1, 2]


def test_all_damaged(tmp_path, train, state):
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, train, state, 1)
        damage(tmp_path / "1", "flipped")
        with (
            pytest.warns(UserWarning, match=r"step 1"),
            pytest.raises(UserError, match=r"every checkpoint in .* is damaged \(steps \[1\]\)"),
        ):
            checkpointer.restore(train)
        assert checkpointer.steps == []
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
            checkpointer.restore(train)
    assert (tmp_path / "1").is_dir()


def test_a_half_written_step_is_named(tmp_path, train, state):
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, train, state, 1)
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.warns(UserWarning, match=r"step 2 in .* is half-written"):
            checkpointer.prepare()
        assert_same(checkpointer.restore(train), state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]


def test_a_disk_that_writes_wrong_is_noticed(tmp_path, train, state, monkeypatch):
    """What is damaged between writing and reading back is not taken for good."""
    read_back = integrity.read_back

    def damage_and_read_back(folder, *arguments):
        damage(folder, "flipped")
        read_back(folder, *arguments)

    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, train, state, 1)
        monkeypatch.setattr(integrity, "read_back", damage_and_read_back)
        checkpointer.save(train, at_step(state, 2))
        with pytest.raises(
            RunError,
            match=r"step 2 .* (was written wrong|cannot be read back).*last good one is step 1",
        ):
            checkpointer.wait()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"tx": optax.sgd(1e-2)}, "this run does not have.*the optimizer"),
        ({"vocab_size": 32}, r"has shape \(64, 16\), but \(32, 16\)"),
        ({"style": "gpt2"}, "does not have .* such arrays"),
    ],
)
def test_another_model_or_optimizer(tmp_path, train, state, other, message):
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, train, state, 1)
        with pytest.raises(UserError, match=message):
            checkpointer.restore(make_train(**other))
        assert checkpointer.steps == [1]


def test_nothing_there(tmp_path, train):
    with Checkpointer(tmp_path) as checkpointer:
        assert (checkpointer.steps, checkpointer.latest_step, checkpointer.best_step) == (
            [],
            None,
            None,
        )
        for ask in (checkpointer.manifest, lambda: checkpointer.restore(train)):
            with pytest.raises(UserError, match=r"no checkpoint in .*train first"):
                ask()


def test_no_such_step(tmp_path, train, state):
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, train, state, 1)
        with pytest.raises(UserError, match=r"no checkpoint of step 7 .* choose one of 1"):
            checkpointer.restore(train, step=7)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to"):
        Checkpointer(tmp_path / "file" / "checkpoints").prepare()
    with pytest.raises(UserError, match=r"keep at least the last"):
        Checkpointer(tmp_path, keep_last=0)


def test_a_failed_save_names_the_last_good_step(tmp_path, train, state, small_files):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, train, state, 1)
    with small_files(10_000), pytest.raises(RunError) as caught:
        save(checkpointer, train, state, 2)
    message = str(caught.value)
    assert re.search(r"checkpoint.* cannot be saved in .*; the last good one is step 1\.", message)
    assert "\n" not in message
    with contextlib.suppress(RunError):
        checkpointer.close()
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.steps == [1]
    assert_same(checkpointer.restore(train), at_step(state, 1))


def test_a_manifest_round_trips(tmp_path, train, state):
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, train, state, 1, eval_loss=1.5)
        manifest = checkpointer.manifest()
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_no_warning_without_damage(tmp_path, train, state):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with Checkpointer(tmp_path) as checkpointer:
            save(checkpointer, train, state, 1)
            checkpointer.restore(train)
