"""Where an operation of a compiled program comes from, in words, read from its JAX name stack."""

from __future__ import annotations

import re
from dataclasses import dataclass

# How the program was traced says nothing.
_PLUMBING = re.compile(
    r"jit\(.*\)|shard_map|while|body|cond|closed_call|eval_jaxpr|checkpoint|branch_\d+_fun|"
    r"custom_vjp_call|custom_jvp_call|rematted_computation|forward_slot|backward_slot|"
)
_TRANSFORM = re.compile(r"(\w+)\((.*)\)")
_SLOTS = {"forward_slot": "forward", "backward_slot": "backward"}
_PARAMETERS = {"parameter": "parameter", "gradient": "gradient"}
"""Scopes that the train step opens around a parameter's path, and what is done there."""


@dataclass(frozen=True)
class Source:
    """An operation's place in the step.

    Attributes:
      scope: the parameter's path, or the part of the model or of the step.
      role: "parameter" or "gradient" for communication of that parameter, else "".
      passing: "forward", "backward" or "recompute" (rematerialisation), "" outside of them.
      primitive: the JAX operation, "" where the compiler gave none.
    """

    scope: str
    role: str
    passing: str
    primitive: str

    def __str__(self) -> str:
        if self.role:
            return f"{self.scope}, {self.role}"
        place = ", ".join(word for word in (self.scope, self.passing) if word)
        return ": ".join(word for word in (place, self.primitive) if word) or "the compiler"


def source(op_name: str) -> Source:
    """Reads a name stack, as HLO metadata and jaxprs have it.

    >>> print(source("jit(step)/shard_map/gradient/blocks/mlp/down/kernel/reduce_scatter"))
    blocks/mlp/down/kernel, gradient
    >>> print(source("jit(step)/shard_map/while/body/transpose(jvp())/blocks/mlp/dot_general"))
    blocks/mlp, backward: dot_general
    >>> print(source(""))
    the compiler
    """
    # Where XLA joins operations it writes "prefix/(first:second:third)".
    segments = re.sub(r"/\((?=\w)", "/", op_name).partition(":")[0].split("/")
    names, passing = [], ""
    for segment in segments:
        while found := _TRANSFORM.fullmatch(segment):
            if found[1] in ("jit", "pjit"):
                break
            passing = _after(passing, found[1])
            segment = found[2]
        passing = _after(passing, segment)
        segment = "head" if segment == "head_slot" else segment  # its exchange of tokens too
        if not _PLUMBING.fullmatch(segment) and names[-1:] != [segment]:
            names.append(segment)
    # An array that changes its sharding where it enters or leaves a `shard_map` is named after it.
    primitive = "shard_map" if segments[-1] == "shard_map" else names.pop() if names else ""
    for index, name in enumerate(names):
        if name in _PARAMETERS:
            return Source("/".join(names[index + 1 :]), _PARAMETERS[name], passing, primitive)
    return Source("/".join(names), "", passing, primitive)


def _after(passing: str, name: str) -> str:
    """The pass that an operation belongs to, given what was known and one more name of it."""
    if name == "rematted_computation" or passing == "recompute":
        return "recompute"
    if name == "transpose":
        return "backward"
    if name in _SLOTS:
        return _SLOTS[name]
    return "forward" if name == "jvp" and not passing else passing
