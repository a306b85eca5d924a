"""The tables of a plan, for the terminal and the notebook alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from rich.table import Table
from rich.text import Text

from hybrid_jax.config.model import num_params
from hybrid_jax.config.strategy import MESH_AXES
from hybrid_jax.hardware.chips import GIB
from hybrid_jax.planning.memory import Memory
from hybrid_jax.planning.search import Plan, Problem
from hybrid_jax.planning.verified import Verified
from hybrid_jax.tables import byte_unit, format_bytes, format_duration, make_table


def heading(problem: Problem) -> Text:
    """Model, devices and batch, on one line."""
    chip, cluster = problem.cluster.chip, problem.cluster
    count = num_params(problem.config)
    facts = (
        f"{count / 1e9:.3g} B parameters" if count > 1e9 else f"{count / 1e6:.3g} M parameters",
        f"{cluster.num_devices} x {chip.name} ({cluster.describe()}), "
        f"{problem.memory_limit_bytes / GIB:.4g} GiB each",
        f"batch {problem.global_batch} x {problem.seq_len}",
        f"{problem.precision}, {problem.optimizer}",
    )
    return Text("  ·  ".join(facts), style="bold")


def ranking(problem: Problem, plans: Sequence[Plan]) -> Table:
    """One row for each plan, the best first."""
    unit, size = byte_unit(max(plan.memory.total for plan in plans))
    columns = (">", "strategy", ">step", ">MFU", ">memory", ">sent", ">bubble", "why not")
    table = make_table("Strategies, by predicted step time", *columns)
    for rank, plan in enumerate(plans, 1):
        time = plan.time
        table.add_row(
            str(rank) if time else "-",
            plan.strategy.describe(),
            format_duration(time.total) if time else "-",
            f"{time.mfu:.0%}" if time else "-",
            f"{plan.memory.total / size:.1f}",
            f"{sum(time.sent_bytes.values()) / size:.3g}" if time else "-",
            f"{plan.bubble:.0%}" if plan.strategy.stage > 1 else "-",
            plan.reason,
            style="bold" if rank == 1 and time else "" if time else "dim",
        )
    table.caption = (
        f"memory and sent: {unit} per device (and step); matmuls are assumed to reach "
        f"{problem.cluster.chip.matmul_fraction:.0%} of the peak"
    )
    return table


def memory_parts(problem: Problem, plans: Sequence[Plan]) -> Table:
    """GiB of one device by part, a row for each plan."""
    names = [field.name for field in fields(Memory)]
    columns = (f">{name.replace('_', ' ')}" for name in names)
    unit, size = byte_unit(max(plan.memory.total for plan in plans))
    table = make_table(f"Memory per device, {unit}", ">", *columns, ">total")
    limit = problem.memory_limit_bytes
    for rank, plan in enumerate(plans, 1):
        parts = (f"{getattr(plan.memory, name) / size:.2f}" for name in names)
        total = f"{plan.memory.total / size:.1f} of {limit / size:,.1f}"
        table.add_row(str(rank) if plan.time else "-", *parts, total)
    return table


def time_parts(plans: Sequence[Plan]) -> Table:
    """Seconds by cause and GiB sent over each axis, a row for each plan."""
    used = {axis for plan in plans if plan.time for axis in plan.time.communication}
    axes = [axis for axis in MESH_AXES if axis in used]
    columns = (">layers", ">head", ">sums", ">bubble", ">update")
    links = (f">over {axis}" for axis in axes)
    table = make_table("Time of a step, and what is sent over each axis", ">", *columns, *links)
    for rank, plan in enumerate(plans, 1):
        time = plan.time
        assert time is not None
        seconds = (time.layers, time.head, time.accumulate, time.bubble, time.update)
        sent = [
            f"{format_duration(time.communication[axis])}, {format_bytes(time.sent_bytes[axis])} "
            f"{plan.links[axis].name}"
            if axis in time.communication
            else "-"
            for axis in axes
        ]
        table.add_row(str(rank), *map(format_duration, seconds), *sent)
    table.caption = (
        "counted in full but for tensor-parallel traffic on TPU, of which XLA is assumed to hide "
        "half behind matmuls; sums: adding up gradients of microbatches"
    )
    return table


def beside_compiled(verified: Sequence[Verified]) -> Table:
    """Memory and traffic as predicted and as the compiler has them, a row for each plan."""
    axes = _heavy_axes(verified)
    links = (f">over {axes}" for axes in axes)
    columns = (">predicted", ">compiled", ">error", *links, ">TFLOP", ">seconds", "verdict")
    table = make_table("Predicted beside compiled", "strategy", *columns)
    unit, size = byte_unit(max(row.predicted for row in verified))
    sent = [value for row in verified for value in (*row.predicted_sent.values(), 0)]
    sent_unit, sent_size = byte_unit(max(sent))
    for row in verified:
        compiled = row.compiled
        table.add_row(
            row.strategy.describe(),
            f"{row.predicted / size:.2f}",
            f"{compiled.total / size:.2f}" if compiled.total else "-",
            "-" if row.error is None else f"{row.error:+.1%}",
            *(
                _pair(row.predicted_sent.get(a), row.sent.get(a), sent_size, a in row.at_most)
                for a in axes
            ),
            _pair(row.predicted_flops, compiled.hardware_flops or None, 10**12),
            f"{compiled.seconds:.0f}" if compiled.seconds else "-",
            row.verdict,
            style="" if row.fits else "dim",
        )
    for column in table.columns[1:-1]:
        column.no_wrap = True
    kinds = {row.compiled.device_kind for row in verified if row.compiled.device_kind}
    compiled_for = f" for {kinds.pop()}" if kinds else ""
    table.caption = (
        f"{unit} per device; over an axis: {sent_unit} sent per step as predicted | in the "
        f"compiled program{compiled_for}; TFLOP of matmuls likewise; seconds: to compile"
    )
    if any(row.at_most for row in verified):
        table.caption += "; ≤: with branches that may not run"
    if any(row.compiled.unknown_loops for row in verified):
        table.caption += "; some loops, whose trip count depends on data, are counted once"
    return table


def _heavy_axes(verified: Sequence[Verified]) -> list[str]:
    """The mesh axes over which some plan sends 1 % of its bytes or more."""
    heavy: dict[str, None] = {}
    for row in verified:
        for sent in (row.predicted_sent, row.sent):
            whole = sum(sent.values())
            heavy |= dict.fromkeys(axis for axis in sent if sent[axis] >= 0.01 * whole)
    return list(heavy)


def _pair(predicted: float | None, compiled: float | None, size: int, at_most: bool = False) -> str:
    if predicted is None and compiled is None:
        return "-"
    first, second = (
        "-" if value is None else f"{value / size:.3g}" for value in (predicted, compiled)
    )
    return f"{first} | {'≤ ' if at_most else ''}{second}"


def note(text: str) -> Text:
    """A line below a table."""
    return Text(f"  {text}\n", style="dim")
