"""`hybrid-jax train`: from a config to a trained model, with a heading and a summary."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from hybrid_jax.build import Run
    from hybrid_jax.config.run import RunConfig
    from hybrid_jax.train.state import TrainState


def train(config: RunConfig) -> None:
    """Train a model and report its held-out loss and a sample of its text."""
    import jax
    from rich.console import Console

    from hybrid_jax.build import build, build_log
    from hybrid_jax.hooks import Evaluate
    from hybrid_jax.metrics.progress import ProgressBar
    from hybrid_jax.trainer import EveryN, Trainer

    console = Console(highlight=False, markup=False, soft_wrap=True)
    run = build(config)
    console.print(_heading(run))
    steps = config.train.steps
    with build_log(run, [ProgressBar(steps, console)]) as log:
        state = run.train.init(jax.random.key(config.train.seed))
        evaluation = Evaluate(run.train, run.validation, log)
        hooks = [log, EveryN(config.train.eval_every or steps, evaluation)]
        state = Trainer(run.train, run.batches, steps=steps, hooks=hooks).fit(state)
    if state.step < steps:
        console.print(f"stopped after {state.step} of {steps} steps")
    _print_summary(run, state, evaluation.loss, console)


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
    """Held-out loss beside that of byte frequencies on the same text, and a sample."""
    import jax

    from hybrid_jax.generate import generate

    config = run.config.train
    for name, nats in (("model", loss), ("byte frequencies", run.unigram_loss)):
        bits = nats / math.log(2)
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
        )
        console.print("sample:", text, sep="\n")
