"""`plan`: which strategy to use on which devices, what it will cost, and why the others lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hybrid_jax.config.checks import check_choice, check_int
from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.errors import UserError, nearest
from hybrid_jax.hardware.chips import GIB
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.memory import OPTIMIZER_BYTES
from hybrid_jax.planning.report import PlanReport
from hybrid_jax.planning.search import Problem, search

_FIXABLE = (
    "replica",
    "stage",
    "data",
    "model",
    "microbatches",
    "schedule",
    "chunks",
    "zero",
    "remat",
    "rules",
)


def plan(
    model: Any,
    /,
    devices: Any,
    global_batch: int,
    seq_len: int,
    *,
    optimizer: str = "adamw",
    precision: str = "bf16",
    memory_gib: float | None = None,
    top: int = 8,
    verify: int | None = None,
    **fixed: Any,
) -> PlanReport:
    """Ranks the strategies for a model, a cluster and a batch; touches no device.

    >>> from hybrid_jax.config.model import preset
    >>> report = plan(preset("llama2-7b"), "h200:8", global_batch=128, seq_len=4096)
    >>> report.best.num_devices
    8

    Args:
      model: a `DecoderConfig`, or a `Decoder`.
      devices: "v5p:4x4x4", "h100:64", a mesh, a mapping or a YAML file; see `Cluster.of`.
      global_batch: examples of a step.
      seq_len: tokens of an example.
      optimizer: "adamw", "lion", "adafactor", "muon" or "sgd": decides what state a parameter has.
      precision: of the compute, "bf16", "fp16" or "f32".
      memory_gib: that a step may use of a device; None: all of it.
      top: how many plans the tables show.
      verify: how many plans to compile, to see what they need; None: none. See `PlanReport.verify`.
      fixed: fields of `Strategy` to keep at one value, such as `stage=4` or `remat="layer"`.

    Raises:
      UserError: unknown devices or fields, or no layout divides the model and the batch. That
        nothing fits the memory is no error before `best` is asked for.
    """
    problem = Problem(
        _config(model),
        Cluster.of(devices),
        global_batch,
        seq_len,
        optimizer,
        precision,
        None if memory_gib is None else memory_gib * GIB,
    )
    _check(problem, top, fixed)
    plans = search(problem, fixed)
    remedy = "" if plans[0].time is not None else _remedy(problem, fixed)
    report = PlanReport(problem, tuple(plans), top, remedy)
    return report if verify is None else report.verify(verify)


def _config(model: Any) -> DecoderConfig:
    config = model if isinstance(model, DecoderConfig) else getattr(model, "config", None)
    if not isinstance(config, DecoderConfig):
        raise UserError(
            f"plan needs a DecoderConfig or a Decoder, not {type(model).__name__}: describe the "
            "model by the preset or the sizes that come nearest."
        )
    return config


def _check(problem: Problem, top: int, fixed: dict[str, Any]) -> None:
    check_int("global_batch", problem.global_batch, at_least=1)
    check_int("seq_len", problem.seq_len, at_least=1)
    check_int("top", top, at_least=1)
    if problem.memory_bytes is not None and not problem.memory_bytes > 0:
        raise UserError(f"memory_gib={problem.memory_bytes / GIB:g} must be above 0.")
    check_choice("optimizer", problem.optimizer, OPTIMIZER_BYTES)
    if problem.seq_len > problem.config.max_length:
        raise UserError(
            f"seq_len={problem.seq_len} must be at most the model's max_length="
            f"{problem.config.max_length}: shorten the one or raise the other."
        )
    for name in fixed:
        if name not in _FIXABLE:
            raise UserError(
                f"plan cannot fix {name!r}: it is one of {', '.join(_FIXABLE)} that may be given."
                f"{nearest(name, _FIXABLE)}"
            )
    sizes = {name: value for name, value in fixed.items() if name in _FIXABLE[:5]}
    for name, value in sizes.items():
        check_int(name, value, at_least=1)


def _remedy(problem: Problem, fixed: dict[str, Any]) -> str:
    """The least change that fits: more of the same devices, or a shorter step."""
    cluster = problem.cluster
    for factor in (2, 4, 8, 16, 32):
        larger = replace(cluster, shape=(*cluster.shape[:-1], cluster.shape[-1] * factor))
        batch = problem.global_batch * factor
        for changed in (problem.global_batch, batch):
            try:
                found = search(replace(problem, cluster=larger, global_batch=changed), fixed)
            except UserError:
                continue
            if found[0].time is not None:
                same = "" if changed == problem.global_batch else f" with global_batch={changed}"
                return f"{larger.num_devices} such devices would do{same}"
    return "use a smaller model, shorter sequences or devices with more memory"
