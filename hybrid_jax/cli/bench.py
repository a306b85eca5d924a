"""`hybrid-jax bench`: layouts beside a plain-JAX step."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from hybrid_jax.cli.files import check_outputs, write_outputs

if TYPE_CHECKING:
    from hybrid_jax.config.run import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `bench`."""
    parser.add_argument(
        "--strategies",
        metavar="FILE",
        help="YAML list of layouts, each with the fields that differ from the config's strategy "
        "(`- {stage: 4, data: 1}`); by default the config's own",
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each")
    parser.add_argument("--json", metavar="FILE", help="write the numbers here too")


def bench(
    config: RunConfig, strategies: str | None = None, steps: int = 10, json: str | None = None
) -> None:
    """Time layouts of a config's model beside a plain-JAX step, in one run."""
    from hybrid_jax.benchmark.compare import bench_from_config
    from hybrid_jax.benchmark.strategies import read_strategies

    check_outputs(json)
    layouts = () if strategies is None else read_strategies(strategies, config.strategy)

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    report = bench_from_config(config, layouts, steps, progress=show)
    print(report)
    write_outputs(report, json)
