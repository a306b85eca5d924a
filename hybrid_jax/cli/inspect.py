"""`hybrid-jax inspect`: what a train step costs, before it runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hybrid_jax.cli.files import check_outputs, write_outputs

if TYPE_CHECKING:
    from hybrid_jax.config.run import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `inspect`."""
    parser.add_argument("--save", metavar="FILE", help="draw it here: a .png, .pdf or .svg")
    parser.add_argument("--json", metavar="FILE", help="write the whole report here too")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="time the step against the same work at stage=1: the bubble as it is",
    )


def inspect(
    config: RunConfig, save: str | None = None, json: str | None = None, measure: bool = False
) -> None:
    """Print what the train step of a config costs: FLOPs, bubble, memory, communication, flags."""
    from hybrid_jax.analysis.report import inspect as make_report
    from hybrid_jax.run import build_train_step, examine_layout

    check_outputs(json, save)
    # All errors of the layout; building the step raises the first. The report has the warnings.
    for finding in examine_layout(config):
        if finding.kind == "error":
            print(f"error: {finding.message}")
    batch_shape = (config.data.global_batch, config.data.seq_len)
    report = make_report(build_train_step(config), batch_shape, measure=measure)
    print(report)
    write_outputs(report, json, save)
