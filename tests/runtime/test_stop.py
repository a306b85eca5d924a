"""A signal ends a run within its grace time, each in a process of its own."""

import signal
import subprocess
import sys
import threading

import pytest

from hybrid_jax.runtime.stop import StopSignal
from hybrid_jax.runtime.watchdog import STALLED

CODE = """
import os, signal, sys, time
from hybrid_jax.runtime.stop import StopSignal

def save(seconds):
    time.sleep(seconds)

with StopSignal(grace_seconds=0.5) as stop:
    os.kill(os.getpid(), signal.{name})
    assert stop.received
    save({seconds})
time.sleep(0.7)
print("saved")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_what_is_saved_in_time_is_saved(name):
    result = run(CODE.format(name=name, seconds=0.1))
    assert (result.returncode, result.stdout) == (0, "saved\n")
    assert result.stderr == f"\n{name}: stopping after this step; once more to stop at once.\n"


def test_what_takes_longer_is_told():
    result = run(CODE.format(name="SIGTERM", seconds=60))
    assert (result.returncode, result.stdout) == (STALLED, "")
    assert "in save" in result.stderr
    assert "did not end within 0.5 s of the signal" in result.stderr.splitlines()[-1]


def test_a_second_signal_kills():
    code = CODE.format(name="SIGTERM", seconds=0).replace(
        "    save", "    os.kill(os.getpid(), signal.SIGTERM)\n    save"
    )
    assert run(code).returncode == -signal.SIGTERM


def test_nothing_is_left_behind():
    handler, threads = signal.getsignal(signal.SIGTERM), set(threading.enumerate())
    with StopSignal(grace_seconds=0.1):
        assert signal.getsignal(signal.SIGTERM) is not handler
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=5)
        assert not thread.is_alive()
    assert signal.getsignal(signal.SIGTERM) is handler


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
