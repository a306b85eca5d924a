"""Kills one of three processes at random instants and reports how the others end.

`python tests/kill_peers.py [--kills 30] [--signal KILL|STOP] [--phases train save] [--seed 0]`
prints one line a trial and a table at the end. A trial is good if every other process ends within
the time-out with status 75 and with one line that names the victim. test_kill_peers.py runs a short
version.
"""

import argparse
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from processes import start_processes

PHASES = ("start", "join", "compile", "train", "save")
COUNT, JOIN_SECONDS, PEER_SECONDS = 3, 60.0, 10.0
WORKER = Path(__file__).with_name("tiny_worker.py")


class Trial(NamedTuple):
    """What one kill led to: for each survivor its status, its error lines and its other output."""

    victim: int
    phase: str
    seconds: float
    statuses: list[int]
    lines: list[str]
    noise: list[str]

    @property
    def is_good(self) -> bool:
        """Whether all others ended by themselves, in one line each that names the victim."""
        return (
            self.statuses == [75] * (COUNT - 1)
            and len(self.lines) == COUNT - 1
            and all(f"process {self.victim} " in line for line in self.lines)
            and not self.noise
        )


def kill(victim: int, phase: str, delay: float, number: int = signal.SIGKILL) -> Trial:
    """Starts three processes and kills one `delay` seconds into a phase; waits for the others."""
    with tempfile.TemporaryDirectory() as folder:
        words = [folder, "steps=100000", f"join={JOIN_SECONDS}", f"peer={PEER_SECONDS}"]
        processes = start_processes([str(WORKER), *words], COUNT, 1)
        try:
            if phase != "start":
                _wait_for_phase(Path(folder) / f"phase-{victim}", phase, processes)
            time.sleep(delay)
            processes[victim].send_signal(number)
            start, survivors = time.monotonic(), [p for p in processes if p != processes[victim]]
            limit = start + JOIN_SECONDS + PEER_SECONDS + 30
            while any(p.poll() is None for p in survivors) and time.monotonic() < limit:
                time.sleep(0.02)
            seconds = time.monotonic() - start
        finally:
            for process in processes:
                process.kill()
        statuses = [process.wait() for process in survivors]
        output = [process.communicate()[1].splitlines() for process in survivors]
    printed = [line for lines in output for line in lines if not line.startswith("waiting for ")]
    lines = [line for line in printed if line.startswith("error: ")]
    noise = [line for line in printed if not line.startswith("error: ")]
    return Trial(victim, phase, seconds, statuses, lines, noise)


def _wait_for_phase(path: Path, phase: str, processes: list) -> None:
    limit = time.monotonic() + 300
    while not (path.exists() and path.read_text().startswith(phase)):
        assert time.monotonic() < limit, f"no {phase} in 300 s"
        assert all(process.poll() is None for process in processes), f"ended before {phase}"
        time.sleep(0.005)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--signal", choices=["KILL", "STOP"], default="KILL")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, trials = random.Random(options.seed), []
    for number in range(options.kills):
        phase = options.phases[number // COUNT % len(options.phases)]
        delay = chance.uniform(0, 6 if phase == "start" else 1)
        trial = kill(number % COUNT, phase, delay, signal.Signals[f"SIG{options.signal}"])
        trials.append(trial)
        verdict = "good" if trial.is_good else f"BAD {trial.statuses} {trial.lines} {trial.noise}"
        print(
            f"{number:3} process {trial.victim} {phase:8}+{delay:.2f} s: the others ended after "
            f"{trial.seconds:5.2f} s, {verdict}",
            flush=True,
        )
    print(f"{sum(trial.is_good for trial in trials)} of {len(trials)} good")
    for phase in PHASES:
        if times := [trial.seconds for trial in trials if trial.phase == phase]:
            print(f"{phase:8} median {statistics.median(times):6.2f} s, max {max(times):6.2f} s")
    return not all(trial.is_good for trial in trials)


if __name__ == "__main__":
    sys.exit(main())
