"""`plan`: which strategy to use on which devices, what it will cost, and why the others lost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group

from hybrid_jax.config.checks import check_choice, check_int
from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError, nearest
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.plan import tables
from hybrid_jax.plan.bounds import Bounds, bounds
from hybrid_jax.plan.memory import OPTIMIZER_BYTES
from hybrid_jax.plan.search import Plan, Problem, search
from hybrid_jax.plan.verified import Verified
from hybrid_jax.plan.verify import TIMEOUT_SECONDS, rerank, verify
from hybrid_jax.tables import Tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


@dataclass(frozen=True)
class PlanReport(Tables):
    """Ranked strategies for one model, cluster and batch; `print` it, or show it in a notebook.

    Attributes:
      problem: what was asked for.
      plans: one for each layout, the fastest first, then those that do not fit.
      top: how many of them the tables show.
      remedy: where nothing fits, what would make it fit.
      verified: what the compiler says of the best plans, where it was asked.
    """

    problem: Problem
    plans: tuple[Plan, ...]
    top: int = 8
    remedy: str = ""
    verified: tuple[Verified, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether any plan does; after `verify`, whether the compiler says so of one."""
        confirmed = any(found.fits for found in self.verified) or not self.verified
        return self.plans[0].time is not None and confirmed

    @property
    def best(self) -> Strategy:
        """The fastest strategy that fits; after `verify`, that the compiler says fits.

        Raises:
          UserError: none does: the nearest miss, and what would make it fit.
        """
        if not self.fits:
            raise UserError(self.miss)
        return self.plans[0].strategy

    def verify(
        self, top: int = 3, *, jobs: int = 1, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> PlanReport:
        """Returns the report with the best plans compiled, and ranked by what came of it.

        Compiles with the real compiler for devices that need not be here, each plan in a process
        of its own. One that does not fit, or that the compiler fails on, loses its rank; where none
        of the first is confirmed, the next ones are tried, up to a limit.

        Args:
          top: plans to compile.
          jobs: compilations at a time; each may use several GB of this machine's memory.
          timeout_seconds: of each.

        Raises:
          UserError: the compiler is not installed; the message says how to install it.
        """
        found = verify(self.problem, self.plans, top, jobs=jobs, timeout_seconds=timeout_seconds)
        plans = rerank(self.problem, self.plans, found)
        remedy = self.remedy or "verify more plans, or use more devices or larger ones"
        return replace(self, plans=plans, remedy=remedy, verified=found)

    @property
    def miss(self) -> str:
        """Where nothing fits, by how much and what would help, on one line."""
        devices = self.problem.cluster.describe()
        if self.verified:
            first = self.verified[0]
            return (
                f"the compiler confirms none of the {len(self.verified)} best plans on {devices}: "
                f"the first, {first.strategy.describe()}, {first.verdict}; {self.remedy}."
            )
        nearest_miss = self.plans[0]
        return (
            f"nothing fits on {devices}: the smallest, {nearest_miss.strategy.describe()}, "
            f"{nearest_miss.reason}; {self.remedy}."
        )

    def __rich__(self) -> Group:
        shown = self.plans[: self.top]
        parts = [tables.heading(self.problem), tables.ranking(self.problem, shown)]
        left = len(self.plans) - len(shown)
        if left:
            parts.append(tables.note(f"and {left} layouts more; top={len(self.plans)} shows all"))
        if self.verified:
            parts.append(tables.beside_compiled(self.verified))
        parts.append(tables.memory_parts(self.problem, shown))
        if self.fits:
            parts.append(tables.time_parts([plan for plan in shown if plan.time]))
            parts += [
                tables.beside_peers(plan, found)
                for plan, found in self._pipelines(shown)
                if found is not None
            ]
        else:
            parts.append(tables.note(self.miss))
        return Group(*parts)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the step time of the plans by cause, with why the others lost.

        Raises:
          UserError: matplotlib is not installed.
        """
        from hybrid_jax.plan.pictures import plot_comparison

        return plot_comparison(self, ax)

    def plot_memory(self, ax: Axes | None = None) -> Axes:
        """Draws the memory of one device by part, a bar for each plan, beside what there is."""
        from hybrid_jax.plan.pictures import plot_memory

        return plot_memory(self, ax)

    def plot_timeline(self, rank: int = 1, ax: Axes | None = None) -> Axes:
        """Draws what each stage of a plan is predicted to do when, in seconds.

        Args:
          rank: of the plan, as in the tables.

        Raises:
          UserError: no plan of this rank fits.
        """
        from hybrid_jax.plan.pictures import plot_timeline

        return plot_timeline(self, rank, ax)

    def save(self, path: str | Path) -> None:
        """Writes all pictures, the timeline of the best plan too, into one .png, .pdf or .svg."""
        from hybrid_jax.plan.pictures import save

        save(self, str(path))

    def _pipelines(self, shown: tuple[Plan, ...]) -> list[tuple[Plan, Bounds | None]]:
        """The best pipeline shown, with what others could do with as many stages.

        Not on CPUs, whose idle ticks are skipped.
        """
        if self.problem.cluster.chip.platform == "cpu":
            return []
        pipelines = [plan for plan in shown if plan.time and plan.strategy.stage > 1]
        return [(plan, bounds(self.problem, plan.strategy.stage)) for plan in pipelines[:1]]

    def to_json(self) -> str:
        """Returns every plan as JSON text; bytes and seconds per device and step."""
        problem = self.problem
        return json.dumps(
            {
                "devices": problem.cluster.describe(),
                "global_batch": problem.global_batch,
                "seq_len": problem.seq_len,
                "memory_bytes": problem.room,
                "plans": [_plan_fields(plan) for plan in self.plans],
                "remedy": self.remedy,
                "verified": [found.to_fields() for found in self.verified],
            },
            indent=2,
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
        None if memory_gib is None else memory_gib * tables.GIB,
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
        raise UserError(f"memory_gib={problem.memory_bytes / tables.GIB:g} must be above 0.")
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


def _plan_fields(plan: Plan) -> dict[str, Any]:
    return {
        "strategy": asdict(plan.strategy),
        "fits": plan.time is not None,
        "reason": plan.reason,
        "bubble": plan.bubble,
        "memory": asdict(plan.memory) | {"total": plan.memory.total},
        "time": None if plan.time is None else asdict(plan.time) | {"total": plan.time.total},
    }
