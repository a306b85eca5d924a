"""`hybrid-jax inspect`: what a train step costs, before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybrid_jax.config.run import RunConfig


def inspect(config: RunConfig) -> None:
    """Print what the train step of a config costs: parameters, memory, communication."""
    from hybrid_jax.build import build_train_step, examine_layout
    from hybrid_jax.inspect.report import inspect as make_report

    # All errors of the layout; building the step raises the first. The report has the warnings.
    for finding in examine_layout(config):
        if finding.kind == "error":
            print(f"error: {finding.message}")
    print(make_report(build_train_step(config), (config.data.global_batch, config.data.seq_len)))
