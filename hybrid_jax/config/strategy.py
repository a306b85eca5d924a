"""What a layout is: mesh axis sizes, schedule, ZeRO, remat, precision, rules. Pure data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from hybrid_jax.config.checks import INT32_MAX, did_you_mean, multiples_near, shown
from hybrid_jax.config.fields import Count, check_fields
from hybrid_jax.config.yaml_text import dump_yaml, parse_yaml
from hybrid_jax.errors import UserError

MESH_AXES = ("replica", "stage", "data", "context", "expert", "model")
"""Names of the mesh axes, slowest link outermost. Every one exists; its size is 1 by default."""

RulePairs = tuple[tuple[str, str | tuple[str, ...] | None], ...]


@dataclass(frozen=True)
class Strategy:
    """How one train step is laid over the devices; holds no device and round-trips to YAML.

    >>> strategy = Strategy(stage=2, data=2, model=2, microbatches=4)
    >>> strategy.num_devices
    8
    >>> Strategy.from_yaml(strategy.to_yaml()) == strategy
    True

    Attributes:
      replica: copies of the whole layout; only gradients cross this axis (slowest network).
      stage: pipeline stages, each a group of consecutive layers.
      data: slices of the batch; ZeRO shards state over this axis.
      context: slices of every sequence.
      expert: slices of the experts of a mixture.
      model: slices of every matrix (tensor parallelism).
      microbatches: equal slices of each device's batch, run one after the other.
      schedule: order of forwards and backwards: "gpipe" (Huang et al. 2019), "1f1b" or
        "interleaved" (Narayanan et al. 2021).
      chunks: groups of layers per stage, more than 1 with the interleaved schedule only.
      zero: what is sharded over `data`: 0 nothing, 1 optimizer state and f32 parameters (gathered
        once per step), 3 compute parameters too (gathered per layer). Rajbhandari et al. 2020.
      remat: what the backward pass finds stored: "none" everything, "dots" matmul results, "layer"
        the input of each layer, "stage" the input of each chunk; the rest is computed again.
      precision: of the compute: "bf16", "fp16" (with dynamic loss scaling, Micikevicius et al.
        2018) or "f32"; parameters, gradients and optimizer are always f32.
      rules: logical axis names to mesh axes: a preset's name, ordered pairs (logical, mesh axis |
        tuple of them | None), or None for the default preset.
      skip_bubbles: whether idle ticks skip their work rather than mask it. None: on CPU only,
        where virtual devices share cores.

    Raises:
      UserError: a size below 1, an unknown choice, or fields that contradict each other.
    """

    replica: Count = 1
    stage: Count = 1
    data: Count = 1
    context: Count = 1
    expert: Count = 1
    model: Count = 1
    microbatches: Count = 1
    schedule: Literal["gpipe", "1f1b", "interleaved"] = "1f1b"
    chunks: Count = 1
    zero: Literal[0, 1, 3] = 1
    remat: Literal["none", "dots", "layer", "stage"] = "layer"
    precision: Literal["bf16", "fp16", "f32"] = "bf16"
    rules: str | Annotated[RulePairs, rule_pairs] | None = None
    skip_bubbles: bool | None = None

    def __post_init__(self):
        check_fields("strategy", self)
        if self.num_devices > INT32_MAX:
            raise UserError(
                f"strategy: the product of its axes is {self.num_devices} devices, but must be at "
                f"most {INT32_MAX}: make an axis smaller."
            )
        self._check_chunks()

    def _check_chunks(self):
        if self.schedule != "interleaved":
            if self.chunks > 1:
                raise UserError(
                    f"strategy.chunks={self.chunks} needs schedule='interleaved', but schedule is "
                    f"{self.schedule!r}: set one or the other."
                )
            return
        if self.stage < 2:
            raise UserError(
                f"strategy.schedule='interleaved' needs at least 2 stages, but stage={self.stage}: "
                "raise stage, or use schedule='1f1b'."
            )
        if self.chunks < 2:
            raise UserError(
                f"strategy.schedule='interleaved' needs at least 2 chunks per stage, but "
                f"chunks={self.chunks}: raise chunks, or use schedule='1f1b'."
            )
        if self.microbatches % self.stage:
            raise UserError(
                f"strategy.microbatches={self.microbatches} must be a multiple of "
                f"stage={self.stage} for schedule='interleaved': use "
                f"{multiples_near(self.microbatches, self.stage)}, or "
                "schedule='1f1b', which takes any number."
            )

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Mesh axis name to size, in the order of `MESH_AXES`."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def num_devices(self) -> int:
        """Product of the mesh axis sizes."""
        return math.prod(self.axis_sizes.values())

    def skips_bubbles(self, platform: str) -> bool:
        """Returns whether idle ticks skip their work on devices of that platform.

        >>> Strategy(stage=2).skips_bubbles("cpu"), Strategy(stage=2).skips_bubbles("tpu")
        (True, False)
        """
        return platform == "cpu" if self.skip_bubbles is None else self.skip_bubbles

    def describe(self) -> str:
        """Returns the fields that differ from the defaults, on one line.

        >>> Strategy(stage=2, data=4, remat="dots").describe()
        'stage=2 data=4 remat=dots'
        """
        changed = (
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )
        return " ".join(changed) or "one device"

    def to_yaml(self) -> str:
        """Returns all fields as a YAML mapping, which `from_yaml` reads back to an equal value."""
        fields = dataclasses.asdict(self)
        if isinstance(self.rules, tuple):
            fields["rules"] = [
                [logical, list(mesh) if isinstance(mesh, tuple) else mesh]
                for logical, mesh in self.rules
            ]
        return dump_yaml(fields)

    @classmethod
    def from_yaml(cls, text: str) -> Strategy:
        """Returns the strategy of a YAML mapping of its fields; absent fields get their default.

        Raises:
          UserError: `text` is no such mapping, or the fields are wrong.
        """
        fields = parse_yaml(text, "a strategy")
        return cls().with_fields({} if fields is None else fields)

    def with_fields(self, fields: Any) -> Strategy:
        """Returns the strategy with the fields of a mapping, as YAML has it, replaced.

        >>> Strategy(data=8).with_fields({"data": 2, "stage": 4}).describe()
        'stage=4 data=2'

        Raises:
          UserError: `fields` is no such mapping, or the fields are wrong.
        """
        if not isinstance(fields, dict):
            raise UserError(f"a strategy must be a mapping of its fields, not {shown(fields)}.")
        names = [field.name for field in dataclasses.fields(self)]
        for name in fields:
            if name not in names:
                raise UserError(
                    f"unknown field {shown(f'strategy.{name}')}: the fields are {', '.join(names)}."
                    f"{did_you_mean(name, names)}"
                )
        return dataclasses.replace(self, **fields)


def rule_pairs(name: str, rules: Any) -> RulePairs:
    """Returns the rules of a strategy as nested tuples, from the nested lists of YAML too.

    Raises:
      UserError: they are no pairs, or name an axis that no mesh has.
    """
    if not isinstance(rules, (list, tuple)):
        raise UserError(
            f"{name}={shown(rules)} must be a preset's name, or a list of pairs "
            "[logical name, mesh axis]."
        )
    pairs = []
    for rule in rules:
        if not isinstance(rule, (list, tuple)) or len(rule) != 2 or not isinstance(rule[0], str):
            raise UserError(
                f"{name} has {shown(rule)}: each rule must be a pair [logical name, mesh axis], "
                "[logical name, [mesh axes]] or [logical name, null]."
            )
        logical, mesh = rule
        mesh = tuple(mesh) if isinstance(mesh, (list, tuple)) else mesh
        for axis in mesh if isinstance(mesh, tuple) else (mesh,):
            if axis is not None and axis not in MESH_AXES:
                raise UserError(
                    f"{name} has {shown(rule)}: {shown(axis)} is no mesh axis "
                    f"({', '.join(MESH_AXES)}).{did_you_mean(axis, MESH_AXES)}"
                )
        pairs.append((logical, mesh))
    return tuple(pairs)
