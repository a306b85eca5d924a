"""Ordered rules from logical axis names to mesh axes, resolved strictly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jax.sharding import PartitionSpec

from hybrid_jax.errors import UserError, nearest

Axes = tuple[str | None, ...]
Rule = tuple[str, tuple[str, ...]]

BATCH_AXES = ("replica", "data", "expert")

ACTIVATION_NAMES = frozenset(
    [
        "batch",
        "length",
        "norm_length",
        "act_embed",
        "act_mlp",
        "act_heads",
        "act_kv_heads",
        "act_vocab",
    ]
)
FIXED_NAMES = {"layers": "stage", "batch": "replica, data and expert"}
"""Logical axes that the train step splits by hand, and over what."""

# fmt: off
MEGATRON: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    # parameters                          # example
    ("layers",       "stage"),            # every block leaf [L, ...]
    ("vocab",        "model"),            # embedding table [V, D], output kernel [D, V]
    ("embed",        None),               # the residual width D of every kernel
    ("mlp",          "model"),            # up [D, F] (columns), down [F, D] (rows)
    ("heads",        "model"),            # query [D, N, H], output [N, H, D]
    ("kv_heads",     "model"),            # key, value [D, K, H]
    ("head_dim",     None),
    ("positions",    None),               # learned positions [P, D]
    ("experts",      "expert"),
    # activations
    ("batch",        BATCH_AXES),
    ("length",       "context"),          # inside attention, MLP and logits
    ("norm_length",  "context"),          # residual stream and norms
    ("act_embed",    None),
    ("act_mlp",      "model"),
    ("act_heads",    "model"),
    ("act_kv_heads", "model"),
    ("act_vocab",    "model"),
)
# fmt: on
"""Tensor parallelism of Shoeybi et al. 2019 (arXiv:1909.08053): column-, then row-parallel."""

ADDITIONS: Mapping[str, tuple[tuple[str, str | tuple[str, ...]], ...]] = {
    # Sequence parallelism, Korthikanti et al. 2022 (arXiv:2205.05198): norms work on 1/model of the
    # tokens; the all-reduce after a row-parallel kernel becomes reduce-scatter plus all-gather.
    "sp": (("norm_length", ("context", "model")),),
    # Parameters also split over `data`, on the dim named here; needs zero=1 or zero=3.
    "fsdp": (("embed", "data"),),
}


@dataclass(frozen=True)
class AxisRules:
    """An ordered table of (logical axis, mesh axes) rules; the first that matches wins.

    >>> rules = AxisRules.of((("batch", "data"), ("mlp", "model"), ("embed", None)))
    >>> tuple(rules.to_spec(("batch", None, "mlp")))
    ('data', None, 'model')
    """

    table: tuple[Rule, ...]
    own: tuple[Rule, ...] = ()  # those that the user wrote, part of `table`

    @classmethod
    def of(cls, rules: Iterable[tuple[str, str | tuple[str, ...] | None]]) -> AxisRules:
        """Builds rules from (logical, mesh axis | mesh axes | None) pairs."""
        return cls(_as_table(rules))

    @property
    def names(self) -> frozenset[str]:
        """The logical names that some rule mentions."""
        return frozenset(name for name, _ in self.table)

    def mesh_axes(self, name: str) -> tuple[str, ...]:
        """The mesh axes of the first rule for `name`."""
        return next(axes for logical, axes in self.table if logical == name)

    def to_spec(self, axes: Axes, *, path: str = "") -> PartitionSpec:
        """Returns the mesh placement of one array from its logical axis names.

        Rules are tried in order; the first whose logical name matches and whose mesh axes are
        still free in this array wins.

        Args:
          axes: one logical name per dim, `None` for a dim that is never sharded.
          path: parameter path, used only in error messages.

        Raises:
          UserError: a name has no rule, or all its rules want a mesh axis this array already
            uses. Replication is written down, `("embed", None)`, never assumed.
        """
        used: set[str] = set()
        entries = []
        for name in axes:
            mesh_axes = () if name is None else self._pick(name, used, axes, path)
            used.update(mesh_axes)
            entries.append(as_entry(mesh_axes))
        return PartitionSpec(*entries)

    def _pick(self, name: str, used: set[str], axes: Axes, path: str) -> tuple[str, ...]:
        where = f"{path or 'array'} with logical axes {axes}"
        candidates = [mesh_axes for logical, mesh_axes in self.table if logical == name]
        if not candidates:
            raise UserError(
                f"{where}: no rule for logical axis {name!r}.{nearest(name, self.names)} "
                f"Add a rule, ({name!r}, None) to replicate it."
            )
        for mesh_axes in candidates:
            if not used.intersection(mesh_axes):
                return mesh_axes
        taken = sorted(used.intersection(candidates[-1]))
        raise UserError(
            f"{where}: the rule for {name!r} wants mesh axis {taken[0]!r}, which an earlier dim "
            f"of this array already uses. Add a fallback rule, ({name!r}, None), after it."
        )


def resolve_rules(rules: str | Iterable | None) -> AxisRules:
    """Returns the rules a strategy names: a preset, or pairs tried before the default table.

    Presets: "megatron" (the default), with "+sp" and "+fsdp" in any combination.

    >>> resolve_rules("megatron+sp").mesh_axes("norm_length")
    ('context', 'model')
    >>> resolve_rules([("mlp", None)]).mesh_axes("mlp")
    ()
    """
    if rules is None:
        return AxisRules.of(MEGATRON)
    if isinstance(rules, str):
        base, *additions = rules.split("+")
        choices = ["megatron", *ADDITIONS]
        for word in [base, *additions]:
            if word not in choices or (word == base) != (word == "megatron"):
                raise UserError(
                    f"rules={rules!r}: unknown preset part {word!r}.{nearest(word, choices)} "
                    "Presets: megatron, megatron+sp, megatron+fsdp, megatron+sp+fsdp."
                )
        first = [rule for word in additions for rule in ADDITIONS[word]]
        return AxisRules.of([*first, *MEGATRON])
    own = _as_table(rules)
    return AxisRules(own + _as_table(MEGATRON), own)


def _as_table(rules: Iterable[tuple[str, str | tuple[str, ...] | None]]) -> tuple[Rule, ...]:
    return tuple((name, _as_tuple(mesh_axes)) for name, mesh_axes in rules)


def _as_tuple(mesh_axes: str | Iterable[str] | None) -> tuple[str, ...]:
    if mesh_axes is None:
        return ()
    return (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes)


def as_entry(mesh_axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """Mesh axes as one entry of a `PartitionSpec`."""
    if not mesh_axes:
        return None
    return mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes
