"""A state saved by two processes is restored by one, and vice versa; all continue, or none.

Run as a program it is one of the two processes: `python test_processes.py FOLDER`.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils
from processes import finish_processes, start_processes
from tiny import decoder, plain_batch

from hybrid_jax import Checkpointer, Strategy, make_mesh, make_train_step
from hybrid_jax.checkpoint.tree import by_name, to_nested
from hybrid_jax.runtime.distributed import initialize_from_environment

pytestmark = pytest.mark.slow

ONE_DEVICE = Strategy(precision="f32")
# Of the two processes, each has one of the stages.
ACROSS = Strategy(data=2, stage=2, model=2, microbatches=2, precision="f32")
OTHER = Strategy(data=8, zero=3, precision="f32")


def make_train(strategy):
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    return make_train_step(decoder(num_layers=2), optax.adamw(1e-2), strategy, mesh)


def trained(train, steps):
    state = train.init(jax.random.key(0))
    for seed in range(steps):
        state, _ = train.step(state, plain_batch(seed=seed))
    return state


def on_host(train, state):
    """Every array of the canonical state, whole."""
    arrays = by_name(to_nested(train.canonical_state(state)))
    return {
        name: np.asarray(multihost_utils.process_allgather(array, tiled=True))
        if jax.process_count() > 1
        else np.asarray(array)
        for name, array in arrays.items()
    }


def next_losses(train, state):
    """Held-out loss, and loss and gradient norm of the next update."""
    held_out = float(train.evaluate(state, plain_batch(seed=7))["loss"])
    _, metrics = train.step(state, plain_batch(seed=8))
    return [held_out, float(metrics["loss"]), float(metrics["grad_norm"])]


def record(folder, name, train, state):
    """What this process holds: the arrays only once, they are whole."""
    arrays = on_host(train, state)
    if jax.process_index() == 0:
        np.savez(folder / f"{name}.npz", **arrays)
    losses = next_losses(train, state)
    (folder / f"{name}.{jax.process_index()}.json").write_text(json.dumps(losses))


def child(folder):
    train = make_train(ACROSS)
    with Checkpointer(folder / "one") as checkpointer:
        record(folder, "one", train, checkpointer.restore(train))
    state = trained(train, 2)
    with Checkpointer(folder / "two") as checkpointer:
        for _ in range(2):  # the second time it may still be written, or not
            checkpointer.save(train, state, metrics={"loss": 4.0})
    record(folder, "two", train, state)
    process = jax.process_index()
    for name, copy in (("seen", "seen by one"), ("read", f"read by {process}")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Checkpointer(folder / copy) as checkpointer:
                checkpointer.prepare()  # as the run that owns the folder
                step = int(checkpointer.restore(train).step)
        told = [str(warning.message) for warning in caught if "damaged" in str(warning.message)]
        (folder / f"{name}.{process}.json").write_text(json.dumps([step, *told]))


def damage_what_one_sees(folder):
    """Flips a byte of a file whose checksum the second process compares."""
    sums = json.loads((folder / "verified.0-of-1.json").read_text())["sums"]
    path = folder / sorted(sums)[1::2][-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_what_one_reads(folder):
    """Cuts an array off where no checksum was noted, so that it shows in reading only."""
    (folder / "verified.0-of-1.json").unlink()
    path = max((folder / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:1000])


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which two processes have left what they found."""
    folder = tmp_path_factory.mktemp("processes")
    train = make_train(OTHER)
    for steps in (1, 2):
        state = trained(train, steps)
        with Checkpointer(folder / "one") as checkpointer:
            checkpointer.save(train, state)
    np.savez(folder / "expected.npz", **on_host(train, state))
    (folder / "expected.json").write_text(json.dumps(next_losses(train, state)))
    shutil.copytree(folder / "one", folder / "seen by one")
    damage_what_one_sees(folder / "seen by one" / "2")
    # A file server that shows the second process other bytes than the first.
    for process in range(2):
        shutil.copytree(folder / "one", folder / f"read by {process}")
    damage_what_one_reads(folder / "read by 1" / "2")
    (folder / "read by 0" / "2" / "verified.0-of-1.json").unlink()
    for result in finish_processes(start_processes([__file__, str(folder)])):
        assert result.returncode == 0, result.stderr
    return folder


def load(path):
    return dict(np.load(path)) if path.suffix == ".npz" else json.loads(path.read_text())


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_saved_by_one_restored_by_two(ran):
    assert_same(load(ran / "one.npz"), load(ran / "expected.npz"))
    assert load(ran / "one.0.json") == load(ran / "one.1.json")
    np.testing.assert_allclose(load(ran / "one.0.json"), load(ran / "expected.json"), rtol=1e-5)


def test_every_process_verifies_its_share(ran):
    stamps = sorted(path.name for path in (ran / "two" / "2").glob("verified.*"))
    assert stamps == ["verified.0-of-2.json", "verified.1-of-2.json"]
    sums = [load(ran / "two" / "2" / name)["sums"] for name in stamps]
    assert not sums[0].keys() & sums[1].keys()
    with Checkpointer(ran / "two") as checkpointer:
        assert checkpointer.last_good_step == 2


@pytest.mark.parametrize("strategy", [ONE_DEVICE, ACROSS, OTHER])
def test_saved_by_two_restored_by_one(ran, strategy):
    train = make_train(strategy)
    with Checkpointer(ran / "two") as checkpointer:
        state = checkpointer.restore(train)
        assert checkpointer.manifest().metrics == {"loss": 4.0}
    assert_same(on_host(train, state), load(ran / "two.npz"))
    np.testing.assert_allclose(next_losses(train, state), load(ran / "two.0.json"), rtol=1e-5)


def test_damage_that_one_process_sees_is_damage_for_all(ran):
    first, second = (load(ran / f"seen.{process}.json") for process in range(2))
    assert (first[0], second[0]) == (1, 1)
    assert "process 1 reported the failure; see its log" in first[1]
    assert "has changed" in second[1]
    assert (ran / "seen by one" / "2.damaged").is_dir()


def test_what_one_process_cannot_read_is_damage_for_all(ran):
    first, second = (load(ran / f"read.{process}.json") for process in range(2))
    assert (first[0], second[0]) == (1, 1)
    assert "process 1 reported the failure; see its log" in first[1]
    assert "cannot be read" in second[1]


if __name__ == "__main__":
    initialize_from_environment()
    child(Path(sys.argv[1]))
