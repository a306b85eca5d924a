"""Reads compiled HLO text into computations and instructions, as deep as control flow needs.

The text of `compiled.as_text()` has one instruction per line; only kernels may take several. Types,
operands and called computations are read; all else stays in `attributes` as text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) .*-> .*\{$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^ +(ROOT )?%?([^\s=]+) = (.*)$", re.MULTILINE | re.DOTALL)
_END = re.compile(r"^\}(, execution_thread=.*)?$", re.MULTILINE)
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(calls|to_apply|condition|body|true_computation|false_computation)=%?([^\s,{}]+)"
)
_CALLED_LIST = re.compile(r"\b(branch_computations|called_computations)=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Shape:
    """One array of an instruction's result; a tuple type is several of them."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the array without padding.

        >>> Shape("bf16", (4, 8)).num_bytes
        64
        """
        bits = re.search(r"\d+", self.dtype)
        return math.ceil(math.prod(self.dims) * (int(bits[0]) if bits else 8) / 8)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      shapes: the arrays of the result, tuples flattened.
      operands: names of the operands, in order.
      arguments: the text between the parentheses, for constants and parameter numbers.
      attributes: the text behind them.
      called: attribute name → names of the computations it calls.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    called: dict[str, tuple[str, ...]]

    @property
    def op_name(self) -> str:
        """The name stack that JAX gave to the operation, "" where there is none."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass
class Computation:
    """A named list of instructions; `root` names the one whose result is returned."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""


@dataclass(frozen=True)
class Module:
    """All computations of a compiled program and the name of its entry."""

    computations: dict[str, Computation]
    entry: str
    num_partitions: int


def parse(text: str) -> Module:
    """Parses the text of a compiled program.

    >>> module = parse('''HloModule m, num_partitions=2
    ... ENTRY %main (x: f32[4]) -> f32[4] {
    ...   %x = f32[4]{0} parameter(0)
    ...   ROOT %y = f32[4]{0} negate(%x)
    ... }''')
    >>> module.computations[module.entry].instructions["y"].operands
    ('x',)
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for statement in _statements(text):
        if current is None:
            if header := _HEADER.match(statement):
                current = Computation(header[2])
                computations[current.name] = current
                entry = current.name if header[1] else entry
        elif found := _INSTRUCTION.match(statement):
            instruction = _parse_instruction(found[2], found[3])
            current.instructions[instruction.name] = instruction
            if found[1]:
                current.root = instruction.name
        else:
            assert _END.match(statement), f"not HLO: {statement[:80]}"
            current = None
    assert entry, "no ENTRY computation in the HLO text"
    partitions = re.search(r"num_partitions=(\d+)", text)
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _statements(text: str) -> Iterator[str]:
    """Headers, instructions and ends of computations, whole: Pallas kernels on TPU take several
    lines, of which one starts with the brace that elsewhere ends a computation.
    """
    statement: list[str] = []
    for line in text.splitlines():
        if statement and any(start.match(line) for start in (_INSTRUCTION, _END, _HEADER)):
            yield "\n".join(statement)
            statement = []
        statement.append(line)
    yield "\n".join(statement)


def _parse_instruction(name: str, rest: str) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", rest)
    type_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    open_paren = rest.index("(", type_end)
    close_paren = _closing(rest, open_paren)
    arguments, attributes = rest[open_paren + 1 : close_paren], rest[close_paren + 1 :]
    called = {key: (value,) for key, value in _CALLED.findall(attributes)}
    for key, values in _CALLED_LIST.findall(attributes):
        called[key] = tuple(value.strip().lstrip("%") for value in values.split(","))
    return Instruction(
        name=name,
        opcode=rest[type_end:open_paren].strip(),
        shapes=tuple(
            Shape(dtype, tuple(int(dim) for dim in dims.split(",") if dim))
            for dtype, dims in _SHAPE.findall(rest[:type_end])
        ),
        operands=tuple(re.findall(r"%([^\s,(){}]+)", arguments)),
        arguments=arguments,
        attributes=attributes,
        called=called,
    )


def _closing(text: str, start: int) -> int:
    """The position of the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise AssertionError(f"unbalanced parentheses in HLO: {text[start : start + 80]}")


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of the `while` instruction `loop` of `computation` runs.

    XLA:CPU and XLA:GPU write it down (`known_trip_count`). XLA:TPU does not: there it is read from
    the condition `index < bound`, as `lax.scan` and `lax.fori_loop` make it, in steps of one.
    Returns None where it depends on data.
    """
    if known := _TRIP_COUNT.search(loop.attributes):
        return int(known[1])
    condition = module.computations[loop.called["condition"][0]]

    def state(index: int) -> int | None:
        return _tuple_element(computation, loop.operands[0], index)

    compare, value_of = _comparison(module, condition, state)
    if compare is None:
        return None
    left, right = (value_of(operand) for operand in compare.operands)
    if left is None or right is None:
        return None
    direction = re.search(r"direction=(\w+)", compare.attributes)
    trips = {"LT": right - left, "LE": right - left + 1, "NE": right - left, "GT": left - right}
    return trips.get(direction[1] if direction else "")


def _comparison(
    module: Module, condition: Computation, state: Callable[[int], int | None]
) -> tuple[Instruction | None, Callable[[str], int | None]]:
    """The compare at the root of a loop condition, and what gives its operands' first values."""

    def value_of(name: str) -> int | None:
        return _value(condition, name, state)

    root = condition.instructions[condition.root]
    if root.opcode != "fusion":
        return (root if root.opcode == "compare" else None), value_of
    fused = module.computations[root.called["calls"][0]]

    def fused_value_of(name: str) -> int | None:
        return _value(fused, name, lambda number: value_of(root.operands[number]))

    inner = fused.instructions[fused.root]
    return (inner if inner.opcode == "compare" else None), fused_value_of


def _value(computation: Computation, name: str, outside: Callable[[int], int | None]) -> int | None:
    """The integer that a scalar instruction holds; `outside` gives a parameter or its element."""
    instruction = computation.instructions[name]
    if instruction.opcode == "constant":
        return int(instruction.arguments) if re.fullmatch(r"-?\d+", instruction.arguments) else None
    if instruction.opcode in ("copy", "copy-start", "copy-done", "bitcast", "convert"):
        return _value(computation, instruction.operands[0], outside)
    if instruction.opcode == "parameter":
        return outside(int(instruction.arguments))
    if instruction.opcode == "get-tuple-element":
        return outside(_tuple_index(instruction))
    return None


def _tuple_element(computation: Computation, name: str, index: int) -> int | None:
    """The integer in one element of a tuple built in `computation`."""
    instruction = computation.instructions[name]
    if instruction.opcode != "tuple":
        return None
    return _value(computation, instruction.operands[index], lambda _: None)


def _tuple_index(instruction: Instruction) -> int:
    found = re.search(r"index=(\d+)", instruction.attributes)
    assert found, f"get-tuple-element without index: {instruction.name}"
    return int(found[1])
