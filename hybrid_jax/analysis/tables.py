"""The tables of a report, for the terminal and the notebook alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from jax.sharding import PartitionSpec
from rich.table import Table
from rich.text import Text

from hybrid_jax.analysis.bubble import Bubble
from hybrid_jax.analysis.flags import Flag
from hybrid_jax.analysis.flops import Flops
from hybrid_jax.analysis.ledger import Ledger
from hybrid_jax.analysis.memory import MemoryReport
from hybrid_jax.analysis.op_names import source
from hybrid_jax.analysis.parameters import ParameterRow
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.tables import format_bytes, format_flops, make_table


def heading(strategy: Strategy, schedule: str, batch_shape: tuple[int, ...]) -> Text:
    """The layout on one line."""
    sizes = strategy.axis_sizes
    layout = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
    facts = (
        f"{strategy.num_devices} devices: {layout or 'no axis above 1'}",
        f"{schedule}, {strategy.microbatches} microbatches",
        f"zero {strategy.zero}, remat {strategy.remat}, {strategy.precision}",
        f"batch {' x '.join(map(str, batch_shape))}",
    )
    return Text("  ·  ".join(facts), style="bold")


def findings(flags: Sequence[Flag], warnings: Sequence[str]) -> Text:
    """The flags and warnings, one on a line, or that there are none."""
    lines = [f"{flag.kind}: {flag.message}" for flag in flags]
    lines += [f"warning: {warning}" for warning in warnings]
    if lines:
        return Text("\n".join(lines), style="yellow")
    return Text("no flags: nothing crosses data in a loop, no reshard, no stray f32", style="green")


def summary_view(
    flops: Flops, bubble: Bubble, memory: MemoryReport, ledger: Ledger, *, idle_computes: bool
) -> Table:
    """The few numbers that decide, each with what explains it.

    Args:
      idle_computes: idle ticks of the pipeline compute on masked values.
    """
    table = make_table("Per device and step", "what", ">amount", "of which")
    at_most = "≤ " if flops.optional or flops.unknown_loops else ""
    if flops.model is not None:
        table.add_row("model FLOPs", format_flops(flops.model), "what the mathematics needs")
    useful = flops.useful_fraction
    share = f"model / hardware {useful:.1%}; the rest is recomputed" if useful else ""
    if useful and bubble.predicted and idle_computes:
        share += " or computed in bubbles"
    table.add_row("hardware FLOPs", at_most + format_flops(flops.hardware), share)
    if bubble.predicted or bubble.measured is not None:
        measured = "" if bubble.measured is None else f"measured {bubble.measured:.1%}"
        table.add_row("bubble", f"{bubble.predicted:.1%}", measured or "predicted by the schedule")
    sent = f"in {ledger.count():,} collectives, {ledger.count(in_loop=True):,} of them in loops"
    table.add_row("sent", format_bytes(ledger.wire_bytes()), sent)
    state = format_bytes(memory.argument)
    table.add_row("memory", format_bytes(memory.total), f"state and batch {state}")
    table.caption = "\n".join(_flops_notes(flops)) + "\n"
    return table


def _flops_notes(flops: Flops) -> Iterator[str]:
    yield "FLOPs: matmuls only"
    if flops.attention_kernels:
        yield (
            f"attention kernels: {format_flops(flops.attention_kernels)}, the full square of "
            "scores, which a causal kernel need not compute"
        )
    if flops.not_counted:
        yield f"not counted, their work unknown: {', '.join(flops.not_counted)}"
    if flops.unknown_loops:
        yield f"counted once, trip count unknown: {', '.join(flops.unknown_loops)}"


def parameter_view(rows: Iterable[ParameterRow]) -> Table:
    """Path, shape, logical axes, spec and bytes on one device."""
    rows = tuple(rows)
    table = make_table("Parameters", "parameter", "shape", "logical axes", "spec", ">per device")
    for row in rows:
        table.add_row(
            row.path,
            " x ".join(map(str, row.shape)) or "scalar",
            " ".join(axis or "·" for axis in row.axes),
            _spec(row.spec),
            format_bytes(row.device_bytes),
        )
    whole = format_bytes(sum(row.bytes for row in rows))
    device = format_bytes(sum(row.device_bytes for row in rows))
    table.add_section()
    table.add_row("total", f"{whole} in all", "", "", device, style="bold")
    return table


def memory_view(report: MemoryReport) -> Table:
    """What one device holds while the step runs, by part."""
    table = make_table("Memory per device", "what", ">bytes", ">share")
    rows = dict(report.state) or {"arguments": report.argument}
    rows["layout and padding"] = report.argument - sum(rows.values())
    rows["results in new memory"] = report.output - report.alias
    rows["temporaries: gradients, activations, buffers"] = report.working
    for name, num_bytes in rows.items():
        if num_bytes:
            table.add_row(name, format_bytes(num_bytes), f"{num_bytes / report.total:.1%}")
    table.add_section()
    table.add_row("peak", format_bytes(report.total), "", style="bold")
    return table


def axis_view(ledger: Ledger, *, widened: bool = False) -> Table:
    """Totals per mesh axes and kind of collective.

    Args:
      widened: XLA:CPU compiled a program of narrow floats, and sends f32 instead.
    """
    columns = ("mesh axes", "collective", "dtype", ">per step", ">in loops", ">sent", ">share")
    table = make_table("Communication per device and step", *columns)
    whole, previous = ledger.wire_bytes(), None
    for total in ledger.by_axis():
        if previous not in (None, total.axes):
            table.add_section()
        table.add_row(
            _axes(total.axes) if total.axes != previous else "",
            total.kind,
            total.dtype,
            ("≤ " if total.conditional else "") + f"{total.count:,}",
            f"{total.loop_count:,}" if total.loop_count else "-",
            format_bytes(total.wire_bytes),
            f"{total.wire_bytes / whole:.1%}",
        )
        previous = total.axes
    table.add_section()
    table.add_row("total", "", "", f"{ledger.count():,}", "", format_bytes(whole), "", style="bold")
    notes = ["sent: bytes that one device puts on the wire"]
    if any(row.conditional for row in ledger.rows):
        notes.append("≤: in branches that may not run")
    if widened:
        notes.append(
            "XLA:CPU computes bf16 and f16 in f32, and sends twice the bytes of a GPU or TPU"
        )
    if ledger.unknown_loops:
        loops = ", ".join(ledger.unknown_loops)
        notes.append(f"counted once, since their trip count depends on data: {loops}")
    table.caption = "; ".join(notes) + "\n"
    return table


def heaviest_view(ledger: Ledger, limit: int = 8) -> Table:
    """The instructions that send most, with the JAX operation they come from."""
    columns = ("mesh axes", "collective", ">per step", ">loops", ">payload", ">sent", "from")
    table = make_table("Heaviest collectives", *columns)
    alike = Counter(ledger.rows)
    heaviest = sorted(alike, key=lambda row: -row.wire_bytes * alike[row])
    for row in heaviest[:limit]:
        table.add_row(
            _axes(row.axes),
            row.kind,
            ("≤ " if row.conditional else "") + f"{row.count * alike[row]:,}",
            " x ".join(map(str, row.trips)) or "-",
            format_bytes(row.bytes),
            format_bytes(row.wire_bytes * alike[row]),
            str(source(row.op_name)),
        )
    if len(heaviest) > limit:
        table.caption = f"and {len(heaviest) - limit} lighter ones\n"
    return table


def _axes(axes: tuple[str, ...]) -> str:
    return " x ".join(axes)


def _spec(spec: PartitionSpec) -> str:
    entries = [entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    return ", ".join("+".join(name or "·" for name in entry) or "·" for entry in entries)
