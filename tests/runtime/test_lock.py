"""The lock of a folder: one holder, named; free again however the holder ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.runtime import lock
from hybrid_jax.runtime.lock import FolderLock

HOLD = """
import sys, time
from hybrid_jax.runtime.lock import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(folder) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def other_host(folder, age: float):
    """Leaves the lock of a process on a host whose kernel is not this one's."""
    path = folder / "run.lock"
    holder = {"pid": 7, "host": "elsewhere", "started": "2026-01-02 03:04:05 UTC", "command": "x"}
    path.write_text(json.dumps(holder))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_holder_is_named_and_the_folder_is_free_when_it_has_ended(tmp_path):
    folder = tmp_path / "new"
    process = hold(folder)
    content = json.loads((folder / "run.lock").read_text())
    assert (content["pid"], content["host"]) == (process.pid, socket.gethostname())
    refusal = (
        rf"'{folder}' is in use by process {process.pid} on host {content['host']} since 20.* UTC: "
    )
    with pytest.raises(UserError, match=refusal):
        FolderLock(folder)
    assert json.loads((folder / "run.lock").read_text()) == content
    process.communicate("\n", timeout=30)
    assert list(folder.iterdir()) == []
    FolderLock(folder).close()


def test_one_process_is_refused_by_itself(tmp_path):
    with FolderLock(tmp_path), pytest.raises(UserError, match=f"by process {os.getpid()} on"):
        FolderLock(tmp_path)


def test_a_killed_holder_is_forgotten_at_once(tmp_path):
    process = hold(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert str(process.pid) in (tmp_path / "run.lock").read_text()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_holder_on_another_host_is_refused_while_it_lives(tmp_path):
    path = other_host(tmp_path, age=30)
    with pytest.raises(UserError, match=r"process 7 on host elsewhere since 2026.* life 3\d s ago"):
        FolderLock(tmp_path)
    other_host(tmp_path, age=300)
    with FolderLock(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_where_the_kernel_knows_no_locks_signs_of_life_decide(tmp_path, monkeypatch):
    """Such as Lustre mounted without `flock`: simulated, as no such file system is at hand."""

    def flock(*_):
        raise OSError(lock._NO_LOCKS[0], "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with FolderLock(tmp_path), pytest.raises(UserError, match=r"sign of life \d s ago"):
        FolderLock(tmp_path)
    FolderLock(tmp_path).close()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[1]", b'{"pid": 1}'])
def test_an_unreadable_lock_is_taken_unless_it_is_held(tmp_path, content):
    path = tmp_path / "run.lock"
    path.write_bytes(content)
    with FolderLock(tmp_path):
        path.write_bytes(content)
        with pytest.raises(UserError, match="in use by a process that does not say which: wait"):
            FolderLock(tmp_path)


def test_the_holder_shows_that_it_lives_and_notices_another(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_TOUCH_SECONDS", 0.05)
    with FolderLock(tmp_path) as held:
        os.utime(held.path, (0, 0))
        wait_until(lambda: held.path.stat().st_mtime > time.time() - 60)
        held.path.unlink()  # someone thought it was dead
        process = hold(tmp_path)
        wait_until(lambda: held.failure is not None)
        assert f"was taken by process {process.pid} on host" in str(held.failure)
    assert held.path.exists()  # it is the other's now
    process.communicate("\n", timeout=30)


def test_a_forked_child_does_not_hold_on(tmp_path):
    code = """
import os, sys, time
from hybrid_jax.runtime.lock import FolderLock
lock = FolderLock(sys.argv[1])
if os.fork() == 0:
    lock.close()  # as leaving a `with` block does
    print("child", flush=True)
    time.sleep(60)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "child\n"
        with pytest.raises(UserError, match=f"by process {process.pid} on"):
            FolderLock(tmp_path)
        process.kill()
        process.wait(timeout=30)
        FolderLock(tmp_path).close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to: Not a directory; choose one"):
        FolderLock(tmp_path / "file" / "below")


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
