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


def main(times: int, seed: int) -> int:
    chance = random.Random(seed)
    print(
        f"{'':>4} {'filled':<9} {'stdout':<8} {'ended after':>11} {'last good':>9}  resumed, last words"
    )
    with small_disk() as disk:
        rows: list[tuple[int, str]] = []
        for number in range(1, times + 2):
            training, on_disk = number % 3 != 0 or number > times, number % 2 == 0
            log = (disk if on_disk else disk.parent) / "log.txt"
            process = start(disk, log)
            if training:
                resumed = wait_for_steps(process, log, disk.parent / "errors.txt")
                for good, row in rows:
                    print(row.format(resumed=resumed), flush=True)
                    if resumed < good:
                        print("WRONG: it resumed from an older step")
                        return 1
                rows = []
            if number > times:
                process.kill()
                process.wait()
                break
            time.sleep(chance.uniform(0, 3 if training else 10))
            seconds, message = fill(process, disk)
            good = newest_good(disk)
            rows.append(
                (
                    good,
                    f"{number:>4} {'training' if training else 'starting':<9} "
                    f"{'on disk' if on_disk else 'apart':<8} {seconds:>9.1f} s {good:>9}  "
                    f"{{resumed}}, {process.returncode}: {message}",
                )
            )
            if not is_sound(process.returncode, seconds, message, good, training):
                print(rows[-1][1], "WRONG: it did not end as it should", sep="\n")
                return 1
    print(f"{times} full disks: each run ended with status 1 and resumed")
    return 0


def is_sound(status: int, seconds: float, message: str, good: int, training: bool) -> bool:
    if status != 1 or not message.startswith("error: ") or seconds > SECONDS:
        return False
    if not training:
        return True
    named = re.search(r"last good (?:checkpoint|one) is step (\d+)", message)
    return (
        int(named[1]) <= good
        if named
        else re.search(r"no (checkpoint|earlier)", message) is not None
    )


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


def wait_for_steps(process: subprocess.Popen, log: Path, errors: Path) -> int:
    """Returns the step that the run began with, when it has made some more."""
    while log.read_text(errors="replace").count("tokens/s") < 3:
        if process.poll() is not None:
            sys.exit(f"the run failed:\n{errors.read_text()[-3000:]}")
        time.sleep(0.02)
    found = re.search(r"going on from step (\d+)", log.read_text())
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
