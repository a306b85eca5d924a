"""The command line: `hybrid-jax train CONFIG [section.field=value ...]` and its siblings."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hybrid_jax.config.load import load_config
from hybrid_jax.config.run import RunConfig
from hybrid_jax.errors import RunError, UserError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from hybrid_jax.build import Run
    from hybrid_jax.train.state import TrainState

# Commands import JAX, and what uses it, when they run: help and config errors come at once.


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


def inspect(config: RunConfig) -> None:
    """Print what the train step of a config costs: parameters, memory, communication."""
    from hybrid_jax.build import build_train_step, examine_layout
    from hybrid_jax.inspect.report import inspect as make_report

    # All errors of the layout; building the step raises the first. The report has the warnings.
    for finding in examine_layout(config):
        if finding.kind == "error":
            print(f"error: {finding.message}")
    print(make_report(build_train_step(config), (config.data.global_batch, config.data.seq_len)))


def bench(
    config: RunConfig, strategies: str | None = None, steps: int = 10, json: str | None = None
) -> None:
    """Time layouts of a config's model beside a plain-JAX step, in one run."""
    from hybrid_jax.bench.compare import bench_from_config
    from hybrid_jax.bench.strategies import read_strategies

    if json is not None and not Path(json).parent.is_dir():
        raise UserError(f"--json {json}: the folder {Path(json).parent} does not exist; make it.")
    layouts = () if strategies is None else read_strategies(strategies, config.strategy)

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    report = bench_from_config(config, layouts, steps, progress=show)
    print(report)
    if json is not None:
        Path(json).write_text(report.to_json() + "\n")


COMMANDS: dict[str, Callable[..., None]] = {"train": train, "inspect": inspect, "bench": bench}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 2 for a user's mistake, 1 for a run that broke.

    Both are told in one line on stderr, without a traceback; Ctrl-C gives 130.
    """
    try:
        options = vars(_parse(sys.argv[1:] if arguments is None else arguments))
        command = COMMANDS[options.pop("command")]
        command(load_config(options.pop("config"), options.pop("overrides")), **options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hybrid-jax", description="Train language models in JAX.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        line = (command.__doc__ or "").strip()
        subparser = commands.add_parser(name, help=line, description=line)
        subparser.add_argument(
            "config", metavar="CONFIG", nargs="?", help="a YAML file, such as those in configs/"
        )
        subparser.add_argument(
            "overrides",
            metavar="section.field=value",
            nargs="*",
            help="a field to replace, such as strategy.stage=4; later ones win",
        )
        if command is bench:
            subparser.add_argument(
                "--strategies",
                metavar="FILE",
                help="a layout in each line, as fields that differ from the config's strategy "
                "(`stage=4 data=1`); by default the config's own",
            )
            subparser.add_argument("--steps", type=int, default=10, help="timed steps of each")
            subparser.add_argument("--json", metavar="FILE", help="write the numbers here too")
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = ", ".join(COMMANDS)
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        raise UserError(
            f"unknown command {first!r}: choose one of {names}.{nearest(first, COMMANDS)}"
        )
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.command is None:
        raise UserError(f"no command: choose one of {names}, or see `hybrid-jax --help`.")
    for argument in rest:
        if argument.startswith("-"):
            raise UserError(
                f"unknown option {argument!r}: see `hybrid-jax {options.command} --help`; "
                "fields of the config are set as section.field=value."
            )
    if options.config is None:
        raise UserError(
            f"no config: give the path of a YAML file, such as `hybrid-jax {options.command} "
            "configs/quickstart.yaml`."
        )
    options.overrides += rest  # argparse leaves over what follows an option
    return options


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
