"""The tables of a report, for the terminal and the notebook alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from jax.sharding import PartitionSpec
from rich.table import Table

from hybrid_jax.inspect.ledger import Ledger
from hybrid_jax.inspect.memory import MemoryReport
from hybrid_jax.inspect.parameters import ParameterRow
from hybrid_jax.tables import format_bytes, make_table

# Segments of a JAX name stack: how the program was traced says nothing, the passes do.
_PLUMBING = re.compile(
    r"jit\(.*\)|shard_map|while|body|cond|closed_call|eval_jaxpr|checkpoint|branch_\d+_fun|"
)
_PASSES = {r"jvp\(.*\)": "forward", r"transpose\(.*\)": "backward", "rematted_.*": "recompute"}


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
    """What one device holds while the step runs."""
    table = make_table("Memory per device", "what", ">bytes")
    for name, num_bytes in (
        ("arguments: state and batch", report.argument),
        ("results", report.output),
        ("results in donated arguments", -report.alias),
        ("temporaries", report.temp),
    ):
        table.add_row(name, format_bytes(num_bytes))
    table.add_section()
    table.add_row("peak", format_bytes(report.total), style="bold")
    return table


def axis_view(ledger: Ledger) -> Table:
    """Totals per mesh axes and kind of collective."""
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
            _source(row.op_name),
        )
    if len(heaviest) > limit:
        table.caption = f"and {len(heaviest) - limit} lighter ones"
    return table


def _axes(axes: tuple[str, ...]) -> str:
    return " x ".join(axes)


def _spec(spec: PartitionSpec) -> str:
    entries = [entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    return ", ".join("+".join(name or "·" for name in entry) or "·" for entry in entries)


def _source(op_name: str) -> str:
    """What a JAX name stack says of an operation: pass, named scopes, primitive.

    >>> _source("jit(step)/shard_map/while/body/transpose(jvp())/mlp/dot_general")
    'backward/mlp/dot_general'
    """
    segments = []
    for segment in op_name.split("/"):
        names = (name for pattern, name in _PASSES.items() if re.fullmatch(pattern, segment))
        name = next(names, segment)
        if not _PLUMBING.fullmatch(name) and segments[-1:] != [name]:
            segments.append(name)
    return "/".join(segments)
