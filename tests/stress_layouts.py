"""Thousands of tiny steps of every layout of eight virtual CPU devices: does one of them hang?

    PYTHONPATH=. python tests/stress_layouts.py --steps 2000
    PYTHONPATH=. python tests/stress_layouts.py --processes 2 --threads 8 --only 4 5

Each layout trains in a process of its own, or in two of four devices each. One whose next hundred
steps take longer than `--patience` hangs: its Python stacks and the native ones, where gdb is
installed, are printed, and the script ends with status 1. `test_stress.py` runs a short version.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import product

from processes import ROOT, start_processes

from hybrid_jax.runtime.cpu import cpu_environment

FACTORISATIONS = [
    sizes for sizes in product((1, 2, 4, 8), repeat=3) if sizes[0] * sizes[1] * sizes[2] == 8
]
_PIPELINES = ({"schedule": "1f1b", "zero": 1}, {"schedule": "interleaved", "chunks": 2, "zero": 3})
LAYOUTS = [
    {"stage": stage, "data": data, "model": model, "microbatches": max(4, stage), **choices}
    for stage, data, model in FACTORISATIONS
    for choices in (_PIPELINES if stage > 1 else ({"zero": 1}, {"zero": 3}))
]
"""Both schedules and ZeRO levels of every factorisation of eight over stage, data and model."""

STEPS_PER_LINE = 100


def train(layout: dict, steps: int, width: int) -> None:
    """Makes the steps and prints one line for every hundred; an evaluation now and then."""
    import jax
    import numpy as np
    import optax

    import hybrid_jax as hj
    from hybrid_jax.runtime.distributed import initialize_from_environment

    faulthandler.register(signal.SIGUSR1)
    initialize_from_environment()
    strategy = hj.Strategy(precision="f32", **layout)
    config = hj.models.preset(
        "nano",
        style="llama",
        vocab_size=64,
        num_layers=strategy.stage * strategy.chunks,
        embed_dim=width,
        num_heads=8,
        num_kv_heads=8,
        mlp_dim=2 * width,
        max_length=width // 2,
    )
    step = hj.make_train_step(
        hj.models.Decoder(config), optax.adamw(1e-3), strategy, hj.make_mesh(strategy)
    )
    state = step.init(jax.random.key(0))
    batch = strategy.data * strategy.microbatches
    tokens = np.random.default_rng(0).integers(0, 64, (batch, width // 2))
    data = {"tokens": tokens, "targets": (tokens + 1) % 64}
    for count in range(1, steps + 1):
        state, metrics = step.step(state, data)
        if count % 25 == 0:  # another program, beside steps that are not waited for
            held_out = step.evaluate(state, data)
            if count % STEPS_PER_LINE == 0:
                print(f"step {count}: loss {float(held_out['loss']):.4f}", flush=True)
    print(f"finished {int(state.step)} steps: loss {float(metrics['loss']):.4f}", flush=True)


def stress(
    index: int,
    steps: int,
    processes: int = 1,
    *,
    width: int = 16,
    patience: float = 400,
    threads: int | None = None,
) -> str:
    """Trains layout `index`; returns what its first process printed last.

    Args:
      index: in `LAYOUTS`.
      steps: how many.
      processes: 1, or 2 of four devices each.
      width: of the model, and twice the tokens of a sequence. In the smallest, 16, XLA runs most
        operations one after the other; from 64 on what is independent runs at the same time.
      patience: seconds that a hundred steps may take, with what comes before them.
      threads: of XLA's pool in each process, in place of the number that hybrid_jax sets.

    Raises:
      RuntimeError: it hangs or fails.
    """
    arguments = [__file__, "--train", str(index), "--steps", str(steps)]
    arguments += ["--width", str(width)]
    overrides = {} if threads is None else {"NPROC": str(threads)}
    if processes == 1:
        environment = {**os.environ, **cpu_environment(8, dict(os.environ)), **overrides}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, *arguments]
        children = [subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)]
    else:
        children = start_processes(arguments, processes, 8 // processes, overrides)
    lines: queue.Queue[tuple[int, str]] = queue.Queue()
    errors: list[str] = []
    for child in children:
        threading.Thread(target=_read, args=(child, lines), daemon=True).start()
        threading.Thread(target=errors.extend, args=(child.stderr,), daemon=True).start()
    last, ended = "", 0
    try:
        while ended < len(children):
            process, line = lines.get(timeout=patience)
            ended += not line
            if line and process == children[0].pid:
                last = line.strip()
        codes = [child.wait(patience) for child in children]
        if any(codes):
            raise RuntimeError(f"FAILS with {codes} after '{last}': {''.join(errors[-40:])}")
    except queue.Empty:
        _show_stacks(children)
        stderr = "".join(errors[-400:])
        raise RuntimeError(f"HANGS after '{last}', for {patience:.0f} s:\n{stderr}") from None
    finally:
        for child in children:
            child.kill()
            child.wait()
    return last


def _read(child: subprocess.Popen, lines: queue.Queue) -> None:
    for line in child.stdout or ():
        lines.put((child.pid, line))
    lines.put((child.pid, ""))


def _show_stacks(children: list[subprocess.Popen]) -> None:
    """Python's stacks go to the children's stderr, gdb's to this process's stdout."""
    for child in children:
        child.send_signal(signal.SIGUSR1)
        time.sleep(1)
        if shutil.which("gdb"):
            words = ["gdb", "-p", str(child.pid), "-batch", "-ex", "thread apply all bt 12"]
            subprocess.run(words, check=False, timeout=300)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="of each layout")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2), help="of each layout")
    parser.add_argument("--width", type=int, default=16, help="of the model")
    parser.add_argument("--patience", type=float, default=400, help="seconds for 100 steps")
    parser.add_argument("--threads", type=int, help="NPROC; what hybrid_jax sets by default")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of layouts; all by default")
    parser.add_argument("--train", type=int, help="(in a child) the layout to train here")
    options = parser.parse_args()
    if options.train is not None:
        return train(LAYOUTS[options.train], options.steps, options.width)
    failures = 0
    for index in range(len(LAYOUTS)) if options.only is None else options.only:
        start = time.monotonic()
        try:
            last = stress(
                index,
                options.steps,
                options.processes,
                width=options.width,
                patience=options.patience,
                threads=options.threads,
            )
        except RuntimeError as error:
            failures += 1
            last = str(error)
        seconds = time.monotonic() - start
        print(f"{index:2d} {LAYOUTS[index]}: {last}, {seconds:.0f} s", flush=True)
    sys.exit(f"{failures} layouts failed" if failures else 0)


if __name__ == "__main__":
    main()
