"""`inspect`: what a train step will cost, before it runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from hybrid_jax.inspect import tables
from hybrid_jax.inspect.ledger import Ledger, ledger
from hybrid_jax.inspect.memory import MemoryReport, memory
from hybrid_jax.inspect.parameters import ParameterRow, parameter_table
from hybrid_jax.tables import Tables, format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hybrid_jax.config.strategy import Strategy
    from hybrid_jax.train.step import TrainStep


@dataclass(frozen=True)
class Report(Tables):
    """What one train step costs on one layout; `print` it, or show it in a notebook.

    Attributes:
      strategy: the layout.
      batch_shape: global (B, T).
      parameters: the parameter table.
      warnings: what is wasteful about the sharding, one line each.
      ledger: the collectives of the compiled step.
      memory: bytes on one device.
      bubble: idle time of the pipeline as a fraction of its work.
      hlo_bytes: length of the compiled program's text; it grows with neither layers nor
        microbatches.
    """

    strategy: Strategy
    batch_shape: tuple[int, int]
    parameters: tuple[ParameterRow, ...]
    warnings: tuple[str, ...]
    ledger: Ledger
    memory: MemoryReport
    bubble: float
    hlo_bytes: int

    def __rich__(self) -> Group:
        return Group(
            self._heading(),
            tables.parameter_view(self.parameters),
            *(Text(f"warning: {warning}", style="yellow") for warning in self.warnings),
            tables.memory_view(self.memory),
            tables.axis_view(self.ledger),
            tables.heaviest_view(self.ledger),
        )

    def plot_shardings(self, path: str | None = None, ax: Axes | None = None) -> Axes:
        """Draws which device holds which part of the parameters.

        Args:
          path: of one parameter, to see how it is cut; None: an overview of all.

        Raises:
          UserError: no parameter has this path, or matplotlib is not installed.
        """
        from hybrid_jax.inspect.pictures import plot_shardings

        return plot_shardings(self, path, ax)

    def plot_memory(self, ax: Axes | None = None) -> Axes:
        """Draws what one device holds at the peak of the step, by part."""
        from hybrid_jax.inspect.pictures import plot_memory

        return plot_memory(self, ax)

    def save(self, path: str | Path) -> None:
        """Writes all pictures into one .png, .pdf or .svg."""
        from hybrid_jax.inspect.pictures import save

        save(self, str(path))

    def to_json(self) -> str:
        """Returns everything in the report as JSON text; sizes in bytes per device and step."""
        return json.dumps(
            {
                "strategy": asdict(self.strategy),
                "batch_shape": self.batch_shape,
                "bubble": self.bubble,
                "hlo_bytes": self.hlo_bytes,
                "memory": asdict(self.memory),
                "parameters": [asdict(row) | {"spec": list(row.spec)} for row in self.parameters],
                "warnings": self.warnings,
                "communication": [asdict(total) for total in self.ledger.by_axis()],
                "collectives": [
                    asdict(row) | {"count": row.count, "wire_bytes": row.wire_bytes}
                    for row in self.ledger.rows
                ],
                "unknown_loops": self.ledger.unknown_loops,
            },
            indent=2,
        )

    def _heading(self) -> Text:
        sizes = self.strategy.axis_sizes
        layout = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
        batch, length = self.batch_shape
        facts = (
            f"{self.strategy.num_devices} devices: {layout or 'no axis above 1'}",
            f"{self.strategy.schedule}, {self.strategy.microbatches} microbatches, "
            f"bubble {self.bubble:.1%}",
            f"batch {batch} x {length}",
            f"compiled program {format_bytes(self.hlo_bytes)}",
        )
        return Text("  ·  ".join(facts), style="bold")


def inspect(train: TrainStep, batch_shape: tuple[int, int]) -> Report:
    """Compiles a train step for a batch of global shape (B, T) and reports what it costs.

    Nothing runs and no array is allocated, so the devices may be absent (ahead-of-time topologies).
    """
    compiled = train.lower(batch_shape).compile()
    text = compiled.as_text()
    assert text is not None, "this backend gives no HLO text"
    return Report(
        strategy=train.strategy,
        batch_shape=batch_shape,
        parameters=parameter_table(train),
        warnings=tuple(finding.message for finding in train.warnings),
        ledger=ledger(text, train.mesh),
        memory=memory(compiled),
        bubble=train.schedule.simulate().bubble_fraction,
        hlo_bytes=len(text),
    )
