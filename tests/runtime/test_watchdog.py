"""The watchdog, each hang in a process of its own, which it ends."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.runtime.watchdog import STALLED, Watchdog

START = "import time, ctypes, threading\nfrom hybrid_jax.runtime.watchdog import Watchdog\n"


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", START + code], stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.parametrize(
    ("code", "where"),
    [
        ("def wait_for_data():\n    time.sleep(60)\nwait_for_data()", "wait_for_data"),
        # Lets other threads run, as a collective does whose other end is missing.
        (
            "libc = ctypes.CDLL(None)\ndef collective():\n    libc.sleep(60)\ncollective()",
            "collective",
        ),
    ],
)
def test_a_hang_ends_the_process_and_is_shown(code, where):
    status, stderr = finish(start(f"dog = Watchdog(0.4)\ndog.beat(7)\n{code}"))
    assert status == STALLED == 75
    assert f"in {where}" in stderr
    last = stderr.splitlines()[-1]
    assert last.startswith("error: no progress for 0.4 s: process 0 (host ")
    assert "is at step 7 since 20" in last


def test_a_hang_that_blocks_python_ends_too():
    code = "dog = Watchdog(0.4)\ndog.beat(7)\ndef blocked():\n    ctypes.PyDLL(None).sleep(60)\n"
    status, stderr = finish(start(f"{code}blocked()"))
    assert status == 1
    assert "in blocked" in stderr


def test_a_device_that_hangs():
    code = """
import jax, numpy
def hang(x):
    time.sleep(60 if x > 1 else 0)
    return x
step = jax.jit(lambda x: jax.pure_callback(hang, jax.ShapeDtypeStruct((), numpy.float32), x))
dog = Watchdog(0.5)
time.sleep(1)  # before the first beat any time may pass
for x in (1, 2):
    step(numpy.float32(x)).block_until_ready()
    dog.beat(x)
"""
    status, stderr = finish(start(code))
    assert status == STALLED
    assert "in hang" in stderr
    assert "is at step 1 since" in stderr.splitlines()[-1]


def test_the_process_behind_is_named_by_all(tmp_path):
    def code(process, steps):
        return f"""
dog = Watchdog(1.5, {str(tmp_path)!r}, process={process}, num_processes=3)
while len(list(dog.folder.glob("*.json"))) < 2:
    time.sleep(0.05)
for step in range({steps}):
    dog.beat(step + 1)
    time.sleep(0.02)
time.sleep(60)
"""

    processes = [start(code(0, 4)), start(code(1, 3))]
    for status, stderr in map(finish, processes):
        assert status == STALLED
        last = stderr.splitlines()[-1]
        assert "2 of 3 processes behind step 4: process 1 (host" in last
        assert f"pid {processes[1].pid}) is at step 3 since" in last
        assert last.endswith("; process 2 has left no heartbeat.")


def test_all_at_the_same_step(tmp_path):
    path = tmp_path / "heartbeat-1.json"
    path.write_text(json.dumps({"step": 5, "time": time.time(), "host": "other", "pid": 1}))
    code = f"dog = Watchdog(0.4, {str(tmp_path)!r}, 0, 2)\ndog.beat(5)\ntime.sleep(60)"
    status, stderr = finish(start(code))
    assert status == STALLED
    assert stderr.splitlines()[-1].endswith("all 2 processes are at step 5.")


def test_a_process_that_was_stopped_is_not_blamed(tmp_path):
    code = """
import os, signal
dog = Watchdog(1)
def beat():
    for step in range(8):
        dog.beat(step)
        time.sleep(0.2)
beat()
print("stop me", file=__import__("sys").stderr, flush=True)
beat()
dog.close()
"""
    process = start(code)
    assert process.stderr is not None
    assert "stop me" in process.stderr.readline()
    os.kill(process.pid, 19)  # SIGSTOP
    time.sleep(1.3)  # beyond its time, but not beyond twice that
    os.kill(process.pid, 18)  # SIGCONT
    status, stderr = finish(process)
    assert (status, stderr) == (0, "")


def test_a_run_that_goes_on_is_left_alone(tmp_path):
    code = f"""
import json, os
with Watchdog(0.8, {str(tmp_path / "new")!r}) as dog:
    time.sleep(1)  # compiling
    path = dog.folder / "heartbeat-0.json"
    assert json.loads(path.read_text())["step"] is None
    for step in range(1, 25):
        dog.beat(step)
        time.sleep(0.05)
    content = json.loads(path.read_text())
    assert content["step"] > 5 and content["pid"] == os.getpid()
    assert abs(time.time() - content["time"]) < 1
assert list(dog.folder.iterdir()) == []
assert threading.active_count() == 1
time.sleep(1.8)  # what was armed would go off now
"""
    assert finish(start(code)) == (0, "")


def test_a_full_disk_is_told_once_and_does_not_end_the_run(tmp_path, capfd):
    with Watchdog(10, tmp_path / "new") as dog:
        (tmp_path / "new" / "heartbeat-0.json").unlink()
        (tmp_path / "new").rmdir()
        for step in (1, 2):
            dog._write(dog._own._replace(step=step))
    assert capfd.readouterr().err.count("warning: no more heartbeats in ") == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    before = threading.active_count()
    with pytest.raises(UserError, match=r"heartbeats '.*file/below' cannot be made: Not a dir"):
        Watchdog(1, Path(tmp_path / "file" / "below"))
    assert threading.active_count() == before
