"""`hybrid-jax train`: from a config to a trained model, with a heading and a summary."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

    from rich.console import Console

    from hybrid_jax.config.run import RunConfig
    from hybrid_jax.run import Run
    from hybrid_jax.train.state import TrainState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `hybrid-jax train`."""
    parser.add_argument(
        "--locate-nan",
        action="store_true",
        help="run every skipped step again and name the first layer, example and array that is "
        "not finite; waits for every step",
    )


def train(config: RunConfig, locate_nan: bool = False) -> None:
    """Train a model and report its held-out loss and a sample of its text."""
    import jax
    from rich.console import Console

    from hybrid_jax.metrics.progress import ProgressBar
    from hybrid_jax.run import (
        build,
        build_checkpointer,
        build_hooks,
        build_log,
        build_watchdog,
        lock_folders,
        start,
    )
    from hybrid_jax.trainer import Trainer

    _hush_orbax()
    run = build(config)
    # All processes do the same; only the main one prints.
    is_main = jax.process_index() == 0
    console = Console(highlight=False, markup=False, soft_wrap=True, quiet=not is_main)
    console.print(_heading(run))
    steps = config.train.steps
    with (
        run.batches,
        lock_folders(config) as locks,  # before anything in them is touched
        build_watchdog(config) as watchdog,  # what is closed before it may hang
        build_checkpointer(config) as checkpointer,
    ):
        state, notes = start(run, checkpointer)
        for note in notes:
            console.print(note)
        # What an earlier run logged beyond its last checkpoint happens again.
        resume_from = None if checkpointer is None else int(state.step)
        terminal = [ProgressBar(steps, console)] if is_main else []
        with build_log(run, terminal, resume_from) as log:
            report = console.print if locate_nan else None
            hooks = build_hooks(run, log, checkpointer, watchdog, locks, locate_nan=report)
            grace = config.train.grace_seconds
            trainer = Trainer(run.train, run.batches, steps=steps, hooks=hooks, grace_seconds=grace)
            state = trainer.fit(state)
    if state.step < steps:
        console.print(f"stopped after {state.step} of {steps} steps")
        if checkpointer is not None:
            console.print(f"saved in {checkpointer.path}: the same command resumes from there")
            return
    _print_summary(run, state, log.latest["eval_loss"], console)


def _hush_orbax() -> None:
    """What Orbax raises it also prints at length, once for every file that failed."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    report = sys.unraisablehook

    def hush(unraisable: UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hush


def _heading(run: Run) -> str:
    from hybrid_jax.models import num_params

    strategy, data = run.config.strategy, run.config.data
    sizes = strategy.axis_sizes.items()
    layout = " x ".join(f"{axis} {size}" for axis, size in sizes if size > 1) or "no axis above 1"
    kind = run.train.mesh.devices.flat[0].device_kind
    return (
        f"{num_params(run.config.model) / 1e6:,.1f} M parameters, {strategy.num_devices} {kind} "
        f"devices ({layout}), {strategy.schedule} schedule, {data.global_batch} x {data.seq_len} "
        f"tokens of {data.describe()} per step"
    )


def _print_summary(run: Run, state: TrainState, loss: float, console: Console) -> None:
    """Held-out loss beside that of token frequencies on the same text, and a sample."""
    import jax

    from hybrid_jax.data.tokenizer import load_tokenizer
    from hybrid_jax.generation.sampling import generate

    config = run.config.train
    for name, nats in (("model", loss), ("token frequencies", run.unigram_loss)):
        bits = nats / math.log(2) / run.bytes_per_token
        console.print(f"held-out loss of {name:<17} {nats:.3f} nats, {bits:.3f} bits per byte")
    if config.output_dir is not None:
        console.print(f"metrics in {config.output_dir}")
    if config.sample_tokens:
        text = generate(
            run.model,
            run.train.canonical_params(state),
            config.sample_prompt,
            max_new_tokens=config.sample_tokens,
            temperature=config.sample_temperature,
            key=jax.random.key(config.seed),
            tokenizer=load_tokenizer(run.validation.sources[0].tokenizer),
        )
        console.print("sample:", text, sep="\n")
