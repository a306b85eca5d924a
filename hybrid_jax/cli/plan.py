"""`hybrid-jax plan`: which strategy to use on which devices, and why."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hybrid_jax.cli.files import check_outputs, write_outputs

if TYPE_CHECKING:
    from hybrid_jax.config.draft import Draft


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `plan`."""
    parser.add_argument(
        "--devices",
        metavar="NAME",
        help="such as v5p:4x4x4, v5e:16x16x2 (two slices), h100:64, or a YAML file; by default the "
        "devices at hand",
    )
    parser.add_argument(
        "--memory-gib", metavar="GIB", type=float, help="that a step may use of a device"
    )
    parser.add_argument("--top", type=int, default=5, help="plans to show")
    parser.add_argument(
        "--verify", type=int, metavar="K", help="compile the best K plans, for absent devices too"
    )
    parser.add_argument("--save", metavar="FILE", help="draw them here: a .png, .pdf or .svg")
    parser.add_argument("--json", metavar="FILE", help="write all plans here too")


def plan(
    draft: Draft,
    devices: str | None = None,
    memory_gib: float | None = None,
    top: int = 5,
    verify: int | None = None,
    save: str | None = None,
    json: str | None = None,
) -> None:
    """Rank the strategies for a config's model and batch on devices that need not be there."""
    from hybrid_jax.run import plan_draft

    check_outputs(json, save)
    report = plan_draft(draft, devices, memory_gib, top)
    if verify is not None:
        report = report.verify(verify)
    print(report)
    write_outputs(report, json, save)
    print(report.best.to_yaml())
