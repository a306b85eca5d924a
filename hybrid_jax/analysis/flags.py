"""What a compiled step does unrequested by its layout: one line each, with the remedy."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax

from hybrid_jax.analysis.dtypes import wide_operations
from hybrid_jax.analysis.ledger import Collective, Ledger
from hybrid_jax.analysis.op_names import Source, source
from hybrid_jax.sharding.rules import BATCH_AXES
from hybrid_jax.tables import format_bytes

if TYPE_CHECKING:
    from hybrid_jax.sharding.rules import AxisRules
    from hybrid_jax.train.step import TrainStep

WRITTEN = frozenset(
    ["all_gather", "all_to_all", "ppermute", "psum", "psum_scatter", "reduce_scatter", "pmax"]
)
"""JAX operations that are collectives: whoever called them meant to communicate."""

_MATMULS = frozenset(["dot_general", "gather", "scatter-add", "scatter_add"])
"""Operations into which XLA:TPU weaves the gathers of sequence parallelism, as permutes: matmuls
and the embedding's lookup."""

_PARTNERS = (
    ("mlp", "act_mlp"),
    ("heads", "act_heads"),
    ("kv_heads", "act_kv_heads"),
    ("vocab", "act_vocab"),
)
"""A parameter's dim and that of the activation it makes: both split, or neither."""


@dataclass(frozen=True)
class Flag:
    """One finding.

    Attributes:
      kind: "in the loop", "reshard", "optimizer" or "f32".
      message: what happens, how much of it, where it comes from, and the remedy, on one line.
      wire_bytes: what one device sends for it in a step; 0 for computation.
    """

    kind: str
    message: str
    wire_bytes: float = 0.0


def find_flags(
    train: TrainStep, traced: jax.stages.Traced, ledger: Ledger, batch_shape: tuple[int, ...]
) -> tuple[Flag, ...]:
    """Returns what is suspicious about a compiled step, most traffic first.

    * A collective over the data axes inside a loop, without `zero=3`: gradients and parameters
      cross them once per step.
    * A reshard that nobody wrote: an all-to-all, all-gather or collective-permute that comes from
      no JAX collective and that the tensor parallelism of the rules does not need. Collectives
      that the compiler left without a name are not judged.
    * What the optimizer gathers: one that works on whole matrices, such as Muon, needs what ZeRO
      and tensor parallelism split.
    * f32 where the strategy says bf16 or fp16: matmuls and activations. Gradients cross in f32 by
      design. The traced program is asked, since XLA:CPU widens bf16 by itself.

    Args:
      traced: `train.trace(batch_shape)`.
      ledger: of the compiled program.
      batch_shape: global (B, T).
    """
    flags = [*_in_loop(train, ledger), *_reshards(train, ledger)]
    if train.strategy.precision != "f32":
        flags += _wide(train, traced, ledger, batch_shape)
    return tuple(sorted(flags, key=lambda flag: -flag.wire_bytes))


def _in_loop(train: TrainStep, ledger: Ledger) -> Iterator[Flag]:
    if train.strategy.zero == 3:
        return
    rows = [row for row in ledger.rows if row.in_loop and set(row.axes) & set(BATCH_AXES)]
    if rows:
        yield Flag(
            "in the loop",
            f"{_what(rows)} inside a loop: with zero={train.strategy.zero} nothing need cross the "
            "data axes more than once a step; take it out of the model's layers, or set zero=3 if "
            "parameters are to be gathered per layer.",
            _sent(rows),
        )


def _reshards(train: TrainStep, ledger: Ledger) -> Iterator[Flag]:
    kinds = ("all-to-all", "all-gather", "collective-permute")
    groups: dict[str, list[Collective]] = defaultdict(list)
    optimizer = []
    for row in ledger.rows:
        origin = source(row.op_name)
        if row.kind not in kinds or not row.op_name or _meant(origin, row, train.rules):
            continue
        if origin.scope.partition("/")[0] == "optimizer":
            optimizer.append(row)
        else:
            groups[_remedy(train.rules, row.axes)].append(row)
    if optimizer:
        yield Flag(
            "optimizer",
            f"{_what(optimizer)}, since the optimizer works on whole matrices: accept it, or use "
            "one that works entry by entry, such as adamw or lion.",
            _sent(optimizer),
        )
    for remedy, rows in groups.items():
        yield Flag("reshard", f"{_what(rows)}, which nobody wrote: {remedy}.", _sent(rows))


def _meant(origin: Source, row: Collective, rules: AxisRules) -> bool:
    if origin.primitive in WRITTEN:
        return True
    if "model" not in rules.mesh_axes("norm_length") or row.axes != ("model",):
        return False
    # Sequence parallelism gathers before every matmul. Who made the operand names the gather from
    # jax 0.12 on, so the name says nothing.
    return row.kind == "all-gather" or (
        row.kind == "collective-permute" and origin.primitive in _MATMULS
    )


def _remedy(rules: AxisRules, axes: tuple[str, ...]) -> str:
    """Names the rules that contradict each other, if any do."""
    on_model = {name for name in rules.names if "model" in rules.mesh_axes(name)}
    if axes == ("model",):
        for name in ("embed", "act_embed", "head_dim"):
            if name in on_model:
                return (
                    f"the rules split {name!r} over model, but matmuls, norms or rotary positions "
                    f"need that dim whole; use ({name!r}, None)"
                )
        for pair in _PARTNERS:
            for name, other in (pair, pair[::-1]):
                if name in on_model and other not in on_model:
                    return (
                        f"the rules split {name!r} over model but not {other!r}, which is the same "
                        f"dim; add ({other!r}, 'model'), or ({name!r}, None)"
                    )
    return (
        "an array is used under another sharding than it was made with; name its dims alike at "
        "both places"
    )


def _wide(
    train: TrainStep, traced: jax.stages.Traced, ledger: Ledger, batch_shape: tuple[int, ...]
) -> Iterator[Flag]:
    precision = train.strategy.precision
    for what, count in wide_operations(traced.jaxpr.jaxpr).items():
        times = f" ({count} times in the program)" if count > 1 else ""
        yield Flag(
            "f32",
            f"{what.primitive} computes on f32 in {what}{times}, but the strategy says "
            f"{precision}: cast its operands, for instance to the dtype of the layer's input.",
        )
    if train.mesh.devices.flat[0].platform == "cpu":
        return
    tokens = math.prod(batch_shape) // _parts(train)
    rows = [
        row
        for row in ledger.rows
        # Statistics of norms and of the loss, one number for each token, are f32 by design.
        if row.axes == ("model",) and row.dtype == "f32" and row.bytes >= 4 * tokens * _width(train)
    ]
    if rows:
        yield Flag(
            "f32",
            f"{_what(rows)} in f32, but the strategy says {precision}: cast the results of these "
            "matmuls.",
            _sent(rows),
        )


def _parts(train: TrainStep) -> int:
    """Into how many microbatches of one device the global batch is cut."""
    return math.prod(train.mesh.shape[axis] for axis in BATCH_AXES) * train.strategy.microbatches


def _width(train: TrainStep) -> int:
    """The width of the residual stream: the largest dim that is called "embed"."""
    axes = jax.tree.leaves(train.model.axes(), is_leaf=lambda node: isinstance(node, tuple))
    shapes = zip(jax.tree.leaves(train.shapes), axes, strict=True)
    dims = [
        size
        for leaf, names in shapes
        for size, name in zip(leaf.shape, names, strict=True)
        if name == "embed"
    ]
    return max(dims, default=1)


def _what(rows: list[Collective]) -> str:
    """Kinds, axes, bytes and the heaviest sources of some rows, in one phrase."""
    axes = dict.fromkeys(" x ".join(row.axes) for row in rows)
    kinds = dict.fromkeys(row.kind for row in rows)
    sent: Counter[str] = Counter()
    for row in rows:
        sent[str(source(row.op_name))] += int(row.wire_bytes)
    origins = [origin for origin, _ in sent.most_common(2)]
    more = f" and {len(sent) - 2} more places" if len(sent) > 2 else ""
    count = sum(row.count for row in rows)
    return (
        f"{' and '.join(kinds)} over {' and '.join(axes)}, {count:,} a step, "
        f"{format_bytes(_sent(rows))} sent ({'; '.join(origins)}{more})"
    )


def _sent(rows: list[Collective]) -> float:
    return sum(row.wire_bytes for row in rows)
