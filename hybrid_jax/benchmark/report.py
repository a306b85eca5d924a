"""The result of a bench: a table for the terminal, JSON for machines."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

import jax
from rich.table import Table

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.models.contract import Model
from hybrid_jax.tables import Tables, format_bytes, make_table

ProgramName = Literal["plain JAX", "hybrid_jax"]


@dataclass(frozen=True)
class Ratio:
    """One program's time by another's; above 1 is slower.

    Attributes:
      wall: of wall-clock seconds.
      cpu: of CPU-seconds: the fair one for virtual devices, which share the machine's cores.
    """

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.3f} / {self.cpu:.3f}"


@dataclass(frozen=True)
class BenchRow:
    """One program.

    Attributes:
      program: "plain JAX", the step written by hand for one device, or "hybrid_jax".
      strategy: the layout; of a plain step, its microbatches, remat and precision.
      step_seconds: wall time of one update, median.
      cpu_seconds: CPU time of one update, median, summed over the process's threads.
      tokens_per_second: of the global batch, by wall time; examples, where there is no length.
      compile_seconds: wall time of tracing, lowering and compiling.
      memory_bytes: on one device: arguments + temporaries + results that are not donated arguments.
      put_seconds: host time of `TrainStep.put`, which checks a batch and places it on the devices,
        once for every step; median. None for a plain step, whose batch nobody checks.
      loss: of the first update. The rows agree (to the precision): they do the same work.
      versus_plain: by the plain step of the same remat and precision on the whole batch.
      versus_accumulation: by that plain step with gradients accumulated over as many microbatches.
    """

    program: ProgramName
    strategy: Strategy
    step_seconds: float
    cpu_seconds: float
    tokens_per_second: float
    compile_seconds: float
    memory_bytes: int
    put_seconds: float | None
    loss: float
    versus_plain: Ratio
    versus_accumulation: Ratio

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> BenchRow:
        """Returns the row whose `dataclasses.asdict` is `fields`."""
        nested = {"strategy": Strategy, "versus_plain": Ratio, "versus_accumulation": Ratio}
        return cls(**fields | {name: nested[name](**fields[name]) for name in nested})


@dataclass(frozen=True)
class ModelSummary:
    """What was trained, in a few words.

    Attributes:
      name: of the model's class.
      num_layers: that a pipeline can cut; 0 for a module of one part.
      num_parameters: in all.
      config: of a model that has one, its fields.
    """

    name: str
    num_layers: int
    num_parameters: int
    config: dict[str, Any]

    @classmethod
    def of(cls, model: Model) -> ModelSummary:
        """Returns the summary of a model."""
        shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
        config = getattr(model, "config", None)
        fields = asdict(config) if is_dataclass(config) else {}  # pyright: ignore[reportArgumentType]
        count = sum(math.prod(leaf.shape) for leaf in shapes)
        return cls(type(model).__name__, model.num_layers, count, fields)

    def __str__(self) -> str:
        layers = f" in {self.num_layers} layers" if self.num_layers else ""
        return f"{self.name}, {self.num_parameters:,} parameters{layers}"


@dataclass(frozen=True)
class BenchReport(Tables):
    """Step times of several layouts and of plain JAX, measured in one run; `print` it.

    Attributes:
      jax_version: of the JAX that ran.
      platform: "cpu", "gpu" or "tpu".
      device_kind: the device's name.
      num_devices: devices that JAX had.
      model: what was trained.
      batch_shape: global (B, T), or (B,).
      steps: timed rounds; in each, every program made one step.
      rows: the plain steps, then the layouts as they were given.
    """

    jax_version: str
    platform: str
    device_kind: str
    num_devices: int
    model: ModelSummary
    batch_shape: tuple[int, ...]
    steps: int
    rows: tuple[BenchRow, ...]

    def to_json(self) -> str:
        """Returns everything in the report as JSON text; seconds and bytes."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> BenchReport:
        """Returns the report whose `to_json` is `text`."""
        fields = json.loads(text)
        fields["model"] = ModelSummary(**fields["model"])
        fields["batch_shape"] = tuple(fields["batch_shape"])
        fields["rows"] = tuple(BenchRow.from_dict(row) for row in fields["rows"])
        return cls(**fields)

    def __rich__(self) -> Table:
        measured = (">step s", ">CPU s", ">put ms", ">tokens/s", ">compile s", ">memory")
        table = make_table(
            self._heading(),
            *("program", *measured, ">by plain", ">by accumulating"),
            caption=f"Medians of {self.steps} interleaved steps; put: batch checks and placement "
            "on the host, per step; memory of one device; ratios of wall / CPU time by plain JAX, "
            "and by it accumulating over as many microbatches.",
        )
        previous = None
        for row in self.rows:
            if previous not in (None, row.program):
                table.add_section()
            previous = row.program
            table.add_row(*_cells(row))
        return table

    def _heading(self) -> str:
        batch = " x ".join(map(str, self.batch_shape))
        return (
            f"{self.model}, batch {batch}  ·  jax {self.jax_version}, {self.num_devices} "
            f"{self.device_kind}"
        )


def _cells(row: BenchRow) -> list[str]:
    return [
        f"{row.program}: {row.strategy.describe()}",
        f"{row.step_seconds:.4g}",
        f"{row.cpu_seconds:.4g}",
        "" if row.put_seconds is None else f"{1000 * row.put_seconds:.3g}",
        f"{row.tokens_per_second:,.0f}",
        f"{row.compile_seconds:.2f}",
        format_bytes(row.memory_bytes),
        str(row.versus_plain),
        str(row.versus_accumulation),
    ]
