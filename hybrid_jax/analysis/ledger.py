"""The collective ledger: what a compiled program sends, how often, over which mesh axes.

Counts are executions per step: loop trips are multiplied in, as `cost_analysis` does not do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from jax.sharding import AbstractMesh, Mesh

from hybrid_jax.analysis import hlo
from hybrid_jax.analysis.groups import crossed_axes, device_groups
from hybrid_jax.errors import UserError, nearest

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


@dataclass(frozen=True)
class Collective:
    """One collective instruction, as one device sees it.

    Attributes:
      kind: one of `KINDS`.
      axes: the mesh axes its groups cross, in mesh order.
      group_size: devices per group.
      trips: trip counts of the loops around it, outermost first.
      bytes: payload of one execution: the whole array that the group reduces, gathers, scatters or
        exchanges, as it stands on one device before (all-reduce, reduce-scatter, all-to-all,
        permute) or after (all-gather) the operation.
      dtype: of the payload; several are joined with "+".
      conditional: it stands in a branch that need not run; `count` is then an upper bound.
      op_name: the JAX name stack it comes from.
      computation: the HLO computation it stands in.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    trips: tuple[int, ...]
    bytes: int
    dtype: str
    conditional: bool
    op_name: str
    computation: str

    @property
    def count(self) -> int:
        """Executions per step."""
        return math.prod(self.trips)

    @property
    def in_loop(self) -> bool:
        """Whether it stands inside a loop."""
        return bool(self.trips)

    @property
    def wire_bytes(self) -> float:
        """Bytes one device sends per step, by the bandwidth-optimal algorithm of each kind.

        With n devices per group, of the payload: all-reduce 2(n-1)/n, all-gather, reduce-scatter
        and all-to-all (n-1)/n, permute 1 (Thakur et al. 2005, doi:10.1177/1094342005051521).
        """
        share = (self.group_size - 1) / self.group_size
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.bytes * self.count


@dataclass(frozen=True)
class AxisTotal:
    """All collectives of one kind over one set of mesh axes; wire bytes per device and step."""

    axes: tuple[str, ...]
    kind: str
    dtype: str
    count: int
    loop_count: int
    wire_bytes: float
    conditional: bool


@dataclass(frozen=True)
class Ledger:
    """The collectives of a compiled program.

    Attributes:
      rows: one per instruction and way of reaching it.
      axis_sizes: of the mesh.
      unknown_loops: loops around collectives whose trip count depends on data; their bodies are
        counted once.
    """

    rows: tuple[Collective, ...]
    axis_sizes: dict[str, int]
    unknown_loops: tuple[str, ...] = ()

    def select(
        self, kind: str | None = None, axis: str | None = None, in_loop: bool | None = None
    ) -> tuple[Collective, ...]:
        """The rows of that kind, that cross that mesh axis (perhaps with others), in a loop or not.

        Raises:
          UserError: unknown kind or axis.
        """
        for value, choices in ((kind, KINDS), (axis, tuple(self.axis_sizes))):
            if value is not None and value not in choices:
                raise UserError(
                    f"{value!r} is not one of {', '.join(choices)}.{nearest(value, choices)}"
                )
        return tuple(
            row
            for row in self.rows
            if kind in (None, row.kind)
            and (axis is None or axis in row.axes)
            and in_loop in (None, row.in_loop)
        )

    def count(
        self, kind: str | None = None, axis: str | None = None, in_loop: bool | None = None
    ) -> int:
        """Executions per step of the selected rows; see `select`."""
        return sum(row.count for row in self.select(kind, axis, in_loop))

    def wire_bytes(
        self, kind: str | None = None, axis: str | None = None, in_loop: bool | None = None
    ) -> float:
        """Bytes one device sends per step for the selected rows; see `select`."""
        return sum(row.wire_bytes for row in self.select(kind, axis, in_loop))

    def by_axis(self) -> tuple[AxisTotal, ...]:
        """Totals per set of crossed axes and kind, axes in mesh order, heaviest kind first."""
        groups: dict[tuple, list[Collective]] = defaultdict(list)
        for row in self.rows:
            groups[row.axes, row.kind, row.dtype].append(row)
        totals = [
            AxisTotal(
                axes=axes,
                kind=kind,
                dtype=dtype,
                count=sum(row.count for row in rows),
                loop_count=sum(row.count for row in rows if row.in_loop),
                wire_bytes=sum(row.wire_bytes for row in rows),
                conditional=any(row.conditional for row in rows),
            )
            for (axes, kind, dtype), rows in groups.items()
        ]
        order = list(self.axis_sizes)
        return tuple(
            sorted(totals, key=lambda t: ([order.index(a) for a in t.axes], -t.wire_bytes))
        )

    def assert_no(
        self, kind: str | None = None, axis: str | None = None, in_loop: bool | None = None
    ) -> None:
        """Raises an AssertionError that lists the selected rows, if there are any."""
        rows = self.select(kind, axis, in_loop)
        lines = [
            f"  {row.count} x {row.kind} over {'+'.join(row.axes)}, {row.bytes} bytes {row.dtype}, "
            f"in {row.computation}: {row.op_name}"
            for row in rows
        ]
        if lines:
            raise AssertionError("\n".join(["collectives that must not be there:", *lines]))


def ledger(compiled_text: str, mesh: Mesh | AbstractMesh) -> Ledger:
    """Reads the collectives of a compiled program.

    Collectives whose groups hold one device each move nothing and are left out. Of the branches of
    a conditional, the one that sends most is counted, for each kind and set of axes by itself.

    Args:
      compiled_text: `compiled.as_text()`.
      mesh: that the program was compiled for; its axis names are the ones reported.

    Raises:
      UserError: the program has another number of devices than the mesh.
    """
    module = hlo.parse(compiled_text)
    if module.num_partitions != mesh.size:
        raise UserError(
            f"the program was compiled for {module.num_partitions} devices, the mesh has "
            f"{mesh.size}: pass the mesh of the program."
        )
    walk = _Walk(module, dict(mesh.shape))
    rows = tuple(walk.rows(module.entry))
    return Ledger(rows, dict(mesh.shape), tuple(sorted(walk.unknown_loops)))


class _Walk:
    """Follows control flow from a computation down and yields the collectives met on the way."""

    def __init__(self, module: hlo.Module, axis_sizes: dict[str, int]):
        self.module = module
        self.axis_sizes = axis_sizes
        self.unknown_loops: set[str] = set()

    def rows(self, name: str) -> Iterator[Collective]:
        computation = self.module.computations[name]
        for instruction in computation.instructions.values():
            # The done half of an asynchronous pair repeats what the start half said.
            if instruction.opcode.endswith(("-done", "-update")):
                continue
            if row := self.collective(computation, instruction):
                yield row
            elif instruction.opcode == "while":
                yield from self.loop(computation, instruction)
            elif instruction.opcode == "conditional":
                yield from self.branches(instruction)
            else:
                for called in _called(instruction):
                    for row in self.rows(called):
                        # XLA:TPU leaves the name of a reduce-scatter on the fusion around it.
                        unnamed = row.kind == "reduce-scatter" and not row.op_name
                        yield replace(row, op_name=instruction.op_name) if unnamed else row

    def collective(
        self, computation: hlo.Computation, instruction: hlo.Instruction
    ) -> Collective | None:
        """The row of one instruction, or None if it is no collective that moves anything."""
        kind = instruction.opcode.removesuffix("-start").removeprefix("ragged-")
        if kind not in KINDS or _is_clone(computation, instruction):
            return None
        # XLA:TPU writes a reduce-scatter as a fusion of an all-reduce and a slice of its result.
        if computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        num_devices = math.prod(self.axis_sizes.values())
        groups = device_groups(instruction.attributes, num_devices)
        axes = crossed_axes(groups, self.axis_sizes)
        if not axes:
            return None
        operands = instruction.operands
        if instruction.opcode.startswith("ragged-"):
            operands = operands[:1]  # the others are the output buffer, offsets and sizes
        shapes = [
            shape for operand in operands for shape in computation.instructions[operand].shapes
        ]
        group_size = max(len(group) for group in groups)
        return Collective(
            kind=kind,
            axes=axes,
            group_size=group_size,
            trips=(),
            bytes=sum(s.num_bytes for s in shapes) * (group_size if kind == "all-gather" else 1),
            dtype="+".join(dict.fromkeys(shape.dtype for shape in shapes)),
            conditional=False,
            op_name=instruction.op_name,
            computation=computation.name,
        )

    def loop(self, computation: hlo.Computation, loop: hlo.Instruction) -> Iterator[Collective]:
        trips = hlo.trip_count(self.module, computation, loop)
        for part, extra in (("body", 0), ("condition", 1)):
            for row in self.rows(loop.called[part][0]):
                if trips is None:
                    self.unknown_loops.add(loop.name)
                yield replace(row, trips=(1 if trips is None else trips + extra, *row.trips))

    def branches(self, conditional: hlo.Instruction) -> Iterator[Collective]:
        heaviest: dict[tuple, tuple[Collective, ...]] = {}
        for called in _called(conditional):
            branch = defaultdict(list)
            for row in self.rows(called):
                branch[row.kind, row.axes].append(replace(row, conditional=True))
            for key, rows in branch.items():
                heaviest[key] = max(heaviest.get(key, ()), tuple(rows), key=_sent)
        for rows in heaviest.values():
            yield from rows


def _is_clone(computation: hlo.Computation, instruction: hlo.Instruction) -> bool:
    """Whether this is one collective written again.

    XLA:TPU overlaps a collective with computations by writing it into the fusion that starts it,
    every fusion that runs meanwhile and the one that waits for it: a chain, counted at its start.
    """
    starts = any(
        'custom_call_target="AsyncCollectiveStart"' in other.attributes
        for other in computation.instructions.values()
    )
    return "chain_id=" in instruction.attributes and not starts


def _sent(rows: Iterable[Collective]) -> float:
    return sum(row.wire_bytes for row in rows)


def _called(instruction: hlo.Instruction) -> Iterator[str]:
    for names in instruction.called.values():
        yield from names
