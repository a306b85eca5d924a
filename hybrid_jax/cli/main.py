"""Parses the command line, runs the command and turns what goes wrong into one line."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NoReturn

from hybrid_jax.cli import bench, data, inspect, plan, train
from hybrid_jax.errors import DISK_FAILURES, RunError, UserError, nearest
from hybrid_jax.runtime.group import FOUND_ELSEWHERE, MAY_BE_ELSEWHERE, leave_group

if TYPE_CHECKING:
    from hybrid_jax.config.draft import Draft
    from hybrid_jax.config.run import RunConfig

# Commands import JAX, and what uses it, when they run: help and mistakes come at once.
CONFIG_COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "plan": plan.plan,
    "inspect": inspect.inspect,
    "bench": bench.bench,
}
COMMANDS = (*CONFIG_COMMANDS, "data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, or 2 for a user's mistake.

    A run that broke gives 1, or 75 if the same command may do better later. All are reported in one
    line on stderr, without a traceback; Ctrl-C gives 130. What ends one of several processes ends
    all of them, see `runtime.group`.
    """
    try:
        status, line, wait = _run(arguments)
        if status:
            leave_group(status, line or "error: nobody reads its output any more", wait=wait)
        if line:
            with contextlib.suppress(OSError):  # stderr may lie on the disk that is full
                print(line, file=sys.stderr)
    finally:
        _release_output()
    return status


def _run(arguments: Sequence[str] | None) -> tuple[int, str, float]:
    """Returns the exit status, what to print, and how long the news of a cause is awaited."""
    try:
        options = vars(_parse(sys.argv[1:] if arguments is None else arguments))
        command = options.pop("command")
        if command == "data":
            data.COMMANDS[options.pop("data_command")](**options)
        else:
            from hybrid_jax.config.load import load_draft

            draft = load_draft(options.pop("config"), options.pop("overrides"))
            CONFIG_COMMANDS[command](draft if command == "plan" else _laid_out(draft), **options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, "", 0.0
    except UserError as error:
        return error.status, f"error: {error}", FOUND_ELSEWHERE if error.found_elsewhere else 0.0
    except RunError as error:
        wait = FOUND_ELSEWHERE if error.found_elsewhere else MAY_BE_ELSEWHERE
        return error.status, f"error: {error}", wait
    except OSError as error:
        if error.errno not in DISK_FAILURES:
            raise
        return 1, f"error: {error.filename or 'stdout'}: {error.strerror}", 0.0
    except KeyboardInterrupt:
        return 130, "interrupted", 0.0
    return 0, "", 0.0


def _release_output() -> None:
    """Drops what a full disk behind stdout or stderr does not take: Python would end with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _laid_out(draft: Draft) -> RunConfig:
    if not draft.auto:
        return draft.laid_out()  # a mistake in it is reported before JAX is imported
    from hybrid_jax.run import lay_out

    config = lay_out(draft)
    print(f"strategy: {config.strategy.describe()}")
    return config


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hybrid-jax", description="Train language models in JAX.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in CONFIG_COMMANDS.items():
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
        if name == "bench":
            bench.add_arguments(subparser)
        elif name == "inspect":
            inspect.add_arguments(subparser)
        elif name == "plan":
            plan.add_arguments(subparser)
        elif name == "train":
            train.add_arguments(subparser)
    line = "Prepare texts for training: prepare, tokenizer, show."
    data.add_commands(commands.add_parser("data", help=line, description=line))
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    words = [argument for argument in arguments if not argument.startswith("-")]
    _check_command("command", words[:1], COMMANDS)
    if words[:1] == ["data"]:
        _check_command("data command", words[1:2], data.COMMANDS)
    options, rest = _parser().parse_known_args(arguments)
    if options.command is None:
        raise UserError(
            f"no command: choose one of {', '.join(COMMANDS)}, or see `hybrid-jax --help`."
        )
    for argument in rest:
        if argument.startswith("-"):
            _unknown_option(argument, options)
    # argparse leaves over what follows an option.
    if options.command == "data":
        _finish_data(options, rest)
    else:
        _finish_config(options, rest)
    return options


def _check_command(kind: str, given: Sequence[str], known: Collection[str]) -> None:
    if given and given[0] not in known:
        raise UserError(
            f"unknown {kind} {given[0]!r}: choose one of {', '.join(known)}."
            f"{nearest(given[0], known)}"
        )


def _unknown_option(argument: str, options: argparse.Namespace) -> NoReturn:
    if options.command == "data":
        name, more = " ".join(["data", options.data_command or ""]).strip(), "."
    else:
        name, more = options.command, "; fields of the config are set as section.field=value."
    raise UserError(f"unknown option {argument!r}: see `hybrid-jax {name} --help`{more}")


def _finish_config(options: argparse.Namespace, rest: list[str]) -> None:
    if options.config is None:
        raise UserError(
            f"no config: give the path of a YAML file, such as `hybrid-jax {options.command} "
            "configs/quickstart.yaml`."
        )
    options.overrides += rest


def _finish_data(options: argparse.Namespace, rest: list[str]) -> None:
    if options.data_command is None:
        raise UserError(
            f"no data command: choose one of {', '.join(data.COMMANDS)}, or see `hybrid-jax data "
            "--help`."
        )
    if hasattr(options, "inputs"):
        options.inputs += rest
    elif rest:
        raise UserError(
            f"unexpected argument {rest[0]!r}; see `hybrid-jax data {options.data_command} --help`."
        )
