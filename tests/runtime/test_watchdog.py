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


def test_a_folder_that_is_gone_is_told_once_and_does_not_end_the_run(tmp_path, capfd):
    with Watchdog(10, tmp_path / "new") as dog:
        (tmp_path / "new" / "heartbeat-0.json").unlink()
        (tmp_path / "new").rmdir()
        for step in (1, 2):
            dog._write(dog._own._replace(step=step))
        assert dog.failure is None
    assert capfd.readouterr().err.count("warning: no more heartbeats in ") == 1


def test_a_full_disk_is_a_failure(tmp_path, capfd):
    (tmp_path / "heartbeat-0.new").symlink_to("/dev/full")
    with Watchdog(10, tmp_path) as dog:
        assert dog.failure is not None
        assert dog.failure.endswith("heartbeat-0.json cannot be written: No space left on device")
    assert capfd.readouterr().err == ""  # whoever looks at the failure says it


def test_a_process_that_stalls_ends_where_stderr_takes_nothing():
    """Its stderr may be on the disk that is full."""
    code = "import os\nos.dup2(os.open('/dev/full', os.O_WRONLY), 2)\n"
    status, _ = finish(start(f"{code}dog = Watchdog(0.4)\ndog.beat(7)\ntime.sleep(60)"))
    assert status == STALLED


def test_the_limit_is_ten_times_the_slowest_of_the_first_steps():
    with Watchdog() as dog:
        assert dog.limit == 3600
        dog.beat(1)
        dog._last -= 90  # as if the step had taken 90 s
        with dog.patient():  # evaluating, behind that step
            dog._last -= 5000
        for step in range(2, 11):
            assert dog.limit == 3600
            dog.beat(step)
        dog._last -= 80
        dog.beat(11)
        assert dog.limit == pytest.approx(900, abs=5)
        dog._last -= 5000
        dog.beat(12)
        assert dog.limit == pytest.approx(900, abs=5)
        with dog.patient():
            assert dog.limit == 3600
        assert dog.limit == pytest.approx(900, abs=5)


FAST = """
import hybrid_jax.runtime.watchdog as module
module._LEAST_SECONDS, module._PATIENT_SECONDS = 3.0, 4.0
dog = Watchdog()
for step in range(1, 14):
    dog.beat(step)
"""


def test_its_own_limit_ends_a_hang():
    status, stderr = finish(start(f"{FAST}time.sleep(60)"))
    assert status == STALLED
    assert "error: no progress for 3 s: process 0" in stderr


def test_patience_covers_what_takes_longer_and_ends_with_it():
    code = f"""{FAST}
with dog.patient():
    time.sleep(2)
    for _ in range(6):
        dog.live()
        time.sleep(1)
print("evaluated", flush=True)
with dog.patient():
    time.sleep(60)
"""
    process = subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, timeout=60
    )
    assert (process.returncode, process.stdout) == (STALLED, "evaluated\n")
    assert "error: no progress for 4 s: process 0" in process.stderr


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    before = threading.active_count()
    with pytest.raises(UserError, match=r"heartbeats '.*file/below' cannot be made: Not a dir"):
        Watchdog(1, Path(tmp_path / "file" / "below"))
    assert threading.active_count() == before
