"""Floating-point operations of a compiled program: its matmuls, with loop trips multiplied in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from hybrid_jax.analysis import hlo, matmuls
from hybrid_jax.config.model import DecoderConfig, flops_per_token

if TYPE_CHECKING:
    from hybrid_jax.pipeline.task_table import Schedule
    from hybrid_jax.train.step import TrainStep


@dataclass(frozen=True)
class Branches:
    """The branches of one conditional.

    Attributes:
      op_name: the JAX name stack it comes from.
      executions: of the conditional, in one run of the program.
      difference: FLOPs of the heaviest branch beyond what the lightest one surely executes.
    """

    op_name: str
    executions: int
    difference: float


@dataclass(frozen=True)
class Flops:
    """Matmul FLOPs that one device executes; elementwise work and lookups are left out.

    Attributes:
      hardware: of the compiled program. Of the branches of a conditional the heaviest counts.
      branches: the conditionals of which a lighter branch may run; `optional` sums them up.
      model: what the mathematics of the step needs, `flops_per_token` x tokens / devices; None
        for a model that is no `Decoder`, or a program that is no train step.
      attention_kernels: the part of `hardware` in attention kernels that state no cost. They count
        by their operands' shapes as the full square of scores, which a causal kernel need not
        compute.
      not_counted: kernels whose work is not known, by name.
      unknown_loops: loops around matmuls whose trip count depends on data; counted once.
    """

    hardware: float = 0.0
    branches: tuple[Branches, ...] = ()
    model: float | None = None
    attention_kernels: float = 0.0
    not_counted: tuple[str, ...] = ()
    unknown_loops: tuple[str, ...] = ()

    @property
    def optional(self) -> float:
        """The part of `hardware` that a run may skip, by taking lighter branches."""
        return sum(branch.executions * branch.difference for branch in self.branches)

    @property
    def useful_fraction(self) -> float | None:
        """`model / hardware`: what recomputation and bubbles leave of the utilisation."""
        return self.model / self.hardware if self.model and self.hardware else None

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.hardware + other.hardware,
            self.branches + other.branches,
            self.model,
            self.attention_kernels + other.attention_kernels,
            _union(self.not_counted, other.not_counted),
            _union(self.unknown_loops, other.unknown_loops),
        )

    def times(self, trips: int) -> Flops:
        """These operations, `trips` times."""
        return replace(
            self,
            hardware=self.hardware * trips,
            branches=tuple(
                replace(branch, executions=branch.executions * trips) for branch in self.branches
            ),
            attention_kernels=self.attention_kernels * trips,
        )


def program_flops(compiled_text: str) -> Flops:
    """Returns the FLOPs of one run of a compiled program on one device.

    `compiled.cost_analysis()` counts the body of a loop once; here it counts as often as it runs.

    >>> import jax, jax.numpy as jnp
    >>> def five_matmuls(x):
    ...     return jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]
    >>> compiled = jax.jit(five_matmuls).lower(jnp.ones((8, 8))).compile()
    >>> program_flops(compiled.as_text()).hardware == 5 * 2 * 8**3
    True

    Args:
      compiled_text: `compiled.as_text()`.
    """
    module = hlo.parse(compiled_text)
    return _Walk(module).computation(module.entry)


def step_flops(train: TrainStep, batch_shape: tuple[int, ...], compiled_text: str) -> Flops:
    """Returns the FLOPs of one device in one step on a batch [B, T], and what the model needs.

    The schedule of the pipeline says how often its conditionals run which branch: what idle
    ticks compute and throw away counts, what they skip does not.
    """
    config = getattr(train.model, "config", None)
    model = None
    if isinstance(config, DecoderConfig):
        batch, length = batch_shape
        model = flops_per_token(config, length) * batch * length / train.mesh.size
    flops = program_flops(compiled_text)
    for slot, runs in _slots_run(train.schedule).items():
        flops = _as_often(flops, slot, runs)
    return replace(flops, model=model)


def _slots_run(schedule: Schedule) -> dict[str, int]:
    """How often each kind of slot runs on a device, in the segments where it stands in a `cond`."""
    runs = {"forward_slot": 0, "backward_slot": 0, "head_slot": 0}
    for segment in schedule.segments():
        ticks = slice(segment.start, segment.stop)
        for slot, table in (
            ("forward_slot", schedule.f_microbatch[ticks]),
            ("backward_slot", schedule.b_microbatch[ticks]),
            ("head_slot", schedule.head[ticks, None]),
        ):
            # Over all segments with bubbles, every stage has the same number of slots to run.
            if (table < 0).any():
                runs[slot] += int((table[:, 0] >= 0).sum())
    return runs


def _as_often(flops: Flops, slot: str, runs: int) -> Flops:
    """`flops` without those of the executions in which the conditionals of `slot` skip it."""
    own = [branch for branch in flops.branches if f"/{slot}/" in branch.op_name]
    executions = sum(branch.executions for branch in own)
    if runs > executions:  # not the program of this schedule, or not as the names say: stay above
        return flops
    skipped = sum(branch.executions * branch.difference for branch in own)
    skipped *= 1 - runs / executions if executions else 0
    others = tuple(branch for branch in flops.branches if branch not in own)
    return replace(flops, hardware=flops.hardware - skipped, branches=others)


class _Walk:
    """Sums over computations, each of which is read once however often it is called."""

    def __init__(self, module: hlo.Module):
        self.module = module
        self.known: dict[str, Flops] = {}

    def computation(self, name: str) -> Flops:
        if name not in self.known:
            computation = self.module.computations[name]
            self.known[name] = _total(
                self.instruction(computation, instruction)
                for instruction in computation.instructions.values()
                # The done half of an asynchronous pair names what its start half called.
                if not instruction.opcode.endswith(("-done", "-update"))
            )
        return self.known[name]

    def instruction(self, computation: hlo.Computation, instruction: hlo.Instruction) -> Flops:
        if instruction.opcode == "while":
            return self.loop(computation, instruction)
        called = [self.computation(name) for names in instruction.called.values() for name in names]
        if instruction.opcode == "conditional":
            return _heaviest(called, instruction.op_name)
        return _total([_own(computation, instruction), *called])

    def loop(self, computation: hlo.Computation, loop: hlo.Instruction) -> Flops:
        body = self.computation(loop.called["body"][0])
        trips = hlo.trip_count(self.module, computation, loop)
        if trips is None:
            loops = (loop.name,) if body.hardware else ()
            return replace(body, unknown_loops=_union(body.unknown_loops, loops))
        return body.times(trips)


def _own(computation: hlo.Computation, instruction: hlo.Instruction) -> Flops:
    """Of one instruction, without the computations it calls."""
    if instruction.opcode != "custom-call":
        return Flops(matmuls.plain_flops(computation, instruction))
    kernel = matmuls.kernel_flops(computation, instruction)
    if kernel is None:
        return Flops(not_counted=(matmuls.kernel_name(instruction),))
    flops, by_shapes = kernel
    return Flops(flops, attention_kernels=flops if by_shapes else 0.0)


def _heaviest(branches: list[Flops], op_name: str) -> Flops:
    heaviest = max(branches, key=lambda branch: branch.hardware)
    surely = min(branch.hardware - branch.optional for branch in branches)
    difference = heaviest.hardware - surely
    return replace(
        heaviest,
        branches=(Branches(op_name, 1, difference),) if difference else (),
        not_counted=_union(*(branch.not_counted for branch in branches)),
        unknown_loops=_union(*(branch.unknown_loops for branch in branches)),
    )


def _total(parts: Iterable[Flops]) -> Flops:
    return reduce(add, parts, Flops())


def _union(*names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in names for name in group))
