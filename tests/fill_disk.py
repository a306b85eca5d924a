"""Fills the disk of a run at random instants: each time it must end, and resume when there is room.

    python tests/fill_disk.py [--times 20] [--seed 0]

Trains a small model in a folder on a small disk of its own (a tmpfs, mounted here) and has another
program fill that disk and keep it full: every third time while the run starts, otherwise while it
trains; every second time the run's stdout is a file on that disk too. The run must end within 60 s
of that with status 1 and one line, which names the last good checkpoint if the run has trained.
When the disk is freed, the same command must resume from the newest good checkpoint. Ends with
status 1 where it does not, and with 77 where nothing can be mounted.
"""

import argparse
import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import kill

from hybrid_jax.checkpoint.integrity import is_verified

SECONDS = 60
CANNOT_MOUNT = 77
OPTIONS = ["train.steps=100000", "train.eval_every=500", "checkpoint.every=10"]
FILL = """
import sys, time
with open(sys.argv[1], "ab", buffering=0) as file:
    size = 2**16
    while True:  # what the run frees is taken too
        try:
            file.write(bytes(size))
        except OSError:
            if size == 1:
                print("full", flush=True)
                time.sleep(0.002)
            size = 1
"""


class End(NamedTuple):
    """How a run has ended after its disk was filled."""

    number: int
    phase: str
    stdout: str
    seconds: float
    last_good: int
    status: int
    message: str

    def is_sound(self, limit_seconds: float) -> bool:
        named = re.search(r"last good (?:checkpoint|one) is step (\d+)", self.message)
        good = int(named[1]) <= self.last_good if named else "no checkpoint" in self.message
        told = self.message.startswith("error: ") and (good or self.phase == "starting")
        return self.status == 1 and told and self.seconds < limit_seconds


def main(times: int, seed: int) -> int:
    chance = random.Random(seed)
    print("   filled    stdout   ended after  last good, resumed at, status and last words")
    with small_disk() as disk:
        unresumed: list[End] = []
        start_seconds, sound = 0.0, True
        for number in range(1, times + 2):
            training, on_disk = number % 3 != 0 or number > times, number % 2 == 0
            log = (disk if on_disk else disk.parent) / "log.txt"
            begun = time.monotonic()
            process = start(disk, log)
            if training:
                errors = disk.parent / "errors.txt"
                resumed = wait_for_steps(process, log, errors, 3)
                start_seconds = time.monotonic() - begun
                sound = report(unresumed, resumed)
                unresumed = []
                if number > times or not sound:
                    process.kill()
                    process.wait()
                    break
                wait_for_steps(process, log, errors, chance.randrange(3, 60))
            time.sleep(chance.uniform(0, 0.3 if training else start_seconds))
            phase, where = "training" if training else "starting", "on disk" if on_disk else "apart"
            seconds, message = fill(process, disk)
            good = newest_good(disk)
            end = End(number, phase, where, seconds, good, process.returncode, message)
            unresumed.append(end)
            # A run that has not trained yet may import and compile what it was about to.
            sound = end.is_sound(SECONDS if training else SECONDS + start_seconds)
            if not sound:
                report(unresumed, None)
                break
    if sound:
        print(f"{times} full disks: each run ended with status 1 and resumed")
    return 0 if sound else 1


def report(ends: list[End], resumed: int | None) -> bool:
    """Prints a line for each; returns whether the run has resumed from where it could."""
    for end in ends:
        print(
            f"{end.number:>2} {end.phase:<9} {end.stdout:<8} {end.seconds:>9.1f} s "
            f"{end.last_good:>10} {resumed!s:>11}  {end.status}, {end.message}",
            flush=True,
        )
        if resumed is None or resumed < end.last_good:
            print("WRONG")
            return False
    return True


@contextlib.contextmanager
def small_disk():
    """A disk of 24 MB, and beside it room for what must not be lost."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, "disk")
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
        result = subprocess.run(mount, capture_output=True, text=True)
        if result.returncode != 0:
            print(f"nothing can be mounted here: {result.stderr.strip()}")
            sys.exit(CANNOT_MOUNT)
        (disk.parent / "run.yaml").write_text(kill.CONFIG)
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


def start(disk: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "hybrid_jax", "train", str(disk.parent / "run.yaml")]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    with log.open("w") as stdout, (disk.parent / "errors.txt").open("w") as stderr:
        return subprocess.Popen(
            [*command, f"train.output_dir={disk / 'out'}", *OPTIONS],
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **cache},
        )


def wait_for_steps(process: subprocess.Popen, log: Path, errors: Path, steps: int) -> int:
    """Returns the step that the run began with, when it has made so many more."""
    while log.read_text(errors="replace").count("tokens/s") < steps:
        if process.poll() is not None:
            sys.exit(f"the run failed:\n{errors.read_text()[-3000:]}")
        time.sleep(0.02)
    found = re.search(r"resuming from step (\d+)", log.read_text())
    return int(found[1]) if found else 0


def fill(process: subprocess.Popen, disk: Path) -> tuple[float, str]:
    """Fills the disk until the run has ended; returns how long it took and its last words."""
    path = disk / "filler"
    filler = subprocess.Popen(
        [sys.executable, "-c", FILL, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert filler.stdout is not None
        filler.stdout.readline()
        begun = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS + 60)
        seconds = time.monotonic() - begun
        process.kill()
        process.wait()
    finally:
        filler.kill()
        filler.wait()
        path.unlink()
    lines = (disk.parent / "errors.txt").read_text().strip().splitlines()
    return seconds, lines[-1] if lines else ""


def newest_good(disk: Path) -> int:
    folders = (disk / "out/checkpoints").glob("*")
    steps = [int(folder.name) for folder in folders if folder.name.isdecimal()]
    return max((s for s in steps if is_verified(disk / "out/checkpoints" / str(s))), default=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(**vars(parser.parse_args())))
