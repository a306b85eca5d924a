"""`inspect`: what a train step will cost, before it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from rich.console import Group
from rich.text import Text

from hybrid_jax.analysis import tables
from hybrid_jax.analysis.bubble import Bubble, check_measurable, measure_bubble
from hybrid_jax.analysis.flags import Flag, find_flags
from hybrid_jax.analysis.flops import Flops, step_flops
from hybrid_jax.analysis.ledger import Ledger, ledger
from hybrid_jax.analysis.memory import MemoryReport, memory
from hybrid_jax.analysis.op_names import source
from hybrid_jax.analysis.parameters import ParameterRow, parameter_table
from hybrid_jax.analysis.state_memory import state_parts
from hybrid_jax.errors import UserError
from hybrid_jax.tables import Tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hybrid_jax.config.strategy import Strategy
    from hybrid_jax.train.step import TrainStep


@dataclass(frozen=True)
class Report(Tables):
    """What one train step costs on one layout; `print` it, or show it in a notebook.

    Attributes:
      strategy: the layout.
      schedule: name of the pipeline table, the strategy's or one's own.
      batch_shape: global (B, T).
      platform: "cpu", "gpu" or "tpu": what it was compiled for.
      flags: what the step does unrequested by the layout; none in a sound one.
      warnings: what is wasteful about the sharding of the parameters, one line each.
      flops: of one device in one step.
      bubble: idle time of the pipeline as a fraction of its work.
      memory: bytes on one device.
      ledger: the collectives of the compiled step.
      parameters: the parameter table.
      hlo_bytes: length of the compiled program's text; it grows with neither layers nor
        microbatches.
    """

    strategy: Strategy
    schedule: str
    batch_shape: tuple[int, ...]
    platform: str
    flags: tuple[Flag, ...]
    warnings: tuple[str, ...]
    flops: Flops
    bubble: Bubble
    memory: MemoryReport
    ledger: Ledger
    parameters: tuple[ParameterRow, ...]
    hlo_bytes: int

    def count(
        self, kind: str | None = None, axis: str | None = None, in_loop: bool | None = None
    ) -> int:
        """Collectives per step of that kind, over that mesh axis, in a loop or not.

        Args:
          kind: "all-reduce", "all-gather", "reduce-scatter", "collective-permute" or "all-to-all".
          axis: that it crosses, perhaps with others.
          in_loop: whether it stands in a loop, over microbatches or layers.

        Raises:
          UserError: unknown kind or axis.
        """
        return self.ledger.count(kind, axis, in_loop)

    def wire_bytes(
        self, kind: str | None = None, axis: str | None = None, in_loop: bool | None = None
    ) -> float:
        """Bytes one device sends per step in the collectives that `count` counts."""
        return self.ledger.wire_bytes(kind, axis, in_loop)

    def assert_no(
        self, kind: str | None = None, axis: str | None = None, in_loop: bool | None = None
    ) -> None:
        """Raises an AssertionError that lists the collectives which `count` counts, if any."""
        self.ledger.assert_no(kind, axis, in_loop)

    def __rich__(self) -> Group:
        return Group(
            tables.heading(self.strategy, self.schedule, self.batch_shape),
            tables.findings(self.flags, self.warnings),
            Text(),
            tables.summary_view(
                self.flops,
                self.bubble,
                self.memory,
                self.ledger,
                idle_computes=not self.strategy.skips_bubbles(self.platform),
            ),
            tables.memory_view(self.memory),
            tables.axis_view(self.ledger, widened=self._widened),
            tables.heaviest_view(self.ledger),
            tables.parameter_view(self.parameters),
        )

    def plot_shardings(self, path: str | None = None, ax: Axes | None = None) -> Axes:
        """Draws which device holds which part of the parameters.

        Args:
          path: of one parameter, to see how it is cut; None: an overview of all.

        Raises:
          UserError: no parameter has this path, or matplotlib is not installed.
        """
        from hybrid_jax.analysis.pictures import plot_shardings

        return plot_shardings(self, path, ax)

    def plot_memory(self, ax: Axes | None = None) -> Axes:
        """Draws what one device holds at the peak of the step, by part."""
        from hybrid_jax.analysis.pictures import plot_memory

        return plot_memory(self, ax)

    def save(self, path: str | Path) -> None:
        """Writes all pictures into one .png, .pdf or .svg."""
        from hybrid_jax.analysis.pictures import save

        save(self, str(path))

    def to_json(self) -> str:
        """Returns everything in the report as JSON text; sizes in bytes per device and step."""
        flops = asdict(self.flops) | {"optional": self.flops.optional}
        return json.dumps(
            {
                "strategy": asdict(self.strategy),
                "schedule": self.schedule,
                "batch_shape": self.batch_shape,
                "platform": self.platform,
                "flags": [asdict(flag) for flag in self.flags],
                "warnings": self.warnings,
                "flops": flops | {"useful_fraction": self.flops.useful_fraction},
                "bubble": asdict(self.bubble),
                "memory": asdict(self.memory) | {"working": self.memory.working},
                "communication": [asdict(total) for total in self.ledger.by_axis()],
                "collectives": [
                    asdict(row)
                    | {
                        "count": row.count,
                        "wire_bytes": row.wire_bytes,
                        "source": str(source(row.op_name)),
                    }
                    for row in self.ledger.rows
                ],
                "unknown_loops": self.ledger.unknown_loops,
                "parameters": [row.to_fields() for row in self.parameters],
                "hlo_bytes": self.hlo_bytes,
            },
            indent=2,
        )

    @property
    def _widened(self) -> bool:
        """Whether the compiler turned narrow floats into f32, as XLA:CPU does."""
        return self.platform == "cpu" and self.strategy.precision != "f32"


def inspect(train: TrainStep, batch_shape: tuple[int, ...], *, measure: bool = False) -> Report:
    """Compiles a train step for a batch of that global shape and reports what it costs.

    Nothing runs and no array is allocated, so the devices may be absent (ahead-of-time topologies).

    >>> import hybrid_jax as hj, optax
    >>> model = hj.models.Decoder(hj.models.preset("nano", num_layers=2, embed_dim=16))
    >>> strategy = hj.Strategy(data=8, zero=0)
    >>> train = hj.make_train_step(model, optax.adam(1e-3), strategy, hj.make_mesh(strategy))
    >>> report = hj.inspect(train, (8, 16))
    >>> report.assert_no("all-gather", axis="data", in_loop=True)
    >>> report.flags
    ()
    >>> report.flops.model <= report.flops.hardware
    True

    Args:
      train: the step.
      batch_shape: global (B, T) of the tokens; (B,) of a model without a length, such as one of
        `from_flax`, whose further dims are those of its example batch.
      measure: also run the step for a moment, and the same work at `stage=1`, to measure the
        bubble; see `hybrid_jax.analysis.bubble.measure_bubble`. Needs the devices and `stage` > 1.

    Raises:
      UserError: the batch does not divide into data shards and microbatches, or nothing can be
        measured.
    """
    _check(batch_shape)
    if measure:
        check_measurable(train)
    traced = train.trace(batch_shape)
    with _own_names():
        compiled = traced.lower().compile()
    text = compiled.as_text()
    assert text is not None, "this backend gives no HLO text"
    book = ledger(text, train.mesh)
    predicted = Bubble(train.schedule.simulate().bubble_fraction)
    return Report(
        strategy=train.strategy,
        schedule=train.schedule.name,
        batch_shape=batch_shape,
        platform=train.mesh.devices.flat[0].platform,
        flags=find_flags(train, traced, book, batch_shape),
        warnings=tuple(finding.message for finding in train.warnings),
        flops=step_flops(train, batch_shape, text),
        bubble=measure_bubble(train, batch_shape) if measure else predicted,
        memory=replace(memory(compiled), state=state_parts(train, batch_shape)),
        ledger=book,
        parameters=parameter_table(train),
        hlo_bytes=len(text),
    )


def _check(batch_shape: tuple[int, ...]) -> None:
    sizes = batch_shape if isinstance(batch_shape, tuple) else ()
    if len(sizes) not in (1, 2) or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise UserError(
            f"batch_shape={batch_shape!r} must be the global (B, T) of the tokens: two positive "
            "integers, such as (16, 1024); or (B,) of a model without a length."
        )


@contextmanager
def _own_names() -> Iterator[None]:
    """Keeps JAX's persistent cache from giving an equal program under names of an older one.

    By default its key leaves out the names of operations, which the report shows.
    """
    option = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, option)
    jax.config.update(option, True)
    try:
        yield
    finally:
        jax.config.update(option, before)
