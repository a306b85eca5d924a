"""Enumerates strategies, rules out what cannot run or fit, and ranks the rest by step time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hybrid_jax.config.depth import num_places
from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.hardware.links import Link
from hybrid_jax.planning.memory import Memory, memory
from hybrid_jax.planning.reasons import reason
from hybrid_jax.planning.schedule_facts import schedule_facts
from hybrid_jax.planning.step_time import StepTime, step_time

REMATS = ("none", "dots", "layer", "stage")  # from the fastest to the smallest
MOST_PADDING = 0.25
"""Share of the layers that places without a layer must stay below, where nobody asked for more."""


@dataclass(frozen=True)
class Plan:
    """One strategy and what it is predicted to cost.

    Attributes:
      strategy: the layout.
      memory: of one device, by part.
      time: of a step; None where it does not fit.
      links: what joins the devices along each mesh axis.
      reason: why it is not the best; empty for the best.
    """

    strategy: Strategy
    memory: Memory
    time: StepTime | None
    links: dict[str, Link] = field(repr=False)
    reason: str = ""

    @property
    def bubble(self) -> float:
        """Idle ticks as a fraction of the working ones."""
        return schedule_facts(self.strategy).idle_share


@dataclass(frozen=True)
class Problem:
    """What a plan is made for.

    Attributes:
      config: the model.
      cluster: the devices.
      global_batch: examples in a step.
      seq_len: tokens of an example.
      optimizer: a key of `plan.memory.OPTIMIZER_BYTES`.
      precision: of the compute.
      memory_bytes: of one device that a step may use; None: all there are.
    """

    config: DecoderConfig
    cluster: Cluster
    global_batch: int
    seq_len: int
    optimizer: str = "adamw"
    precision: str = "bf16"
    memory_bytes: float | None = None

    @property
    def memory_limit_bytes(self) -> float:
        """Bytes that a step may use of one device."""
        chip = self.cluster.chip.hbm_bytes
        return chip if self.memory_bytes is None else min(self.memory_bytes, chip)

    def memory(self, strategy: Strategy) -> Memory:
        """Bytes of one device."""
        platform = self.cluster.chip.platform
        sizes = (self.global_batch, self.seq_len)
        return memory(self.config, strategy, *sizes, self.optimizer, platform)

    def time(self, strategy: Strategy, links: dict[str, Link]) -> StepTime:
        """Seconds of a step."""
        sizes = (self.global_batch, self.seq_len)
        return step_time(self.config, strategy, self.cluster, *sizes, links)


def search(problem: Problem, fixed: dict[str, Any] | None = None) -> list[Plan]:
    """Returns a plan for each layout (sizes of the mesh axes): those that fit by step time, then
    those that do not by what they need.

    Of each layout's schedules, microbatches, ZeRO levels and remats it is the fastest that fits, or
    else the smallest. Context and expert stay 1: the train step does not split them.

    Args:
      fixed: fields of `Strategy` that have only this value.

    Raises:
      UserError: no layout divides the model and the batch.
    """
    plans = []
    for layout in layouts(problem, fixed or {}):
        links = problem.cluster.links(layout)
        plan = _best_of(problem, list(variants(problem, layout, fixed or {})), links)
        if plan is not None:
            plans.append(plan)
    if not plans:
        raise UserError(_nothing_divides(problem, fixed or {}))
    plans.sort(key=lambda plan: (plan.time is None, plan.time.total if plan.time else _size(plan)))
    return [replace(plan, reason=reason(problem, plan, plans[0])) for plan in plans]


def layouts(problem: Problem, fixed: dict[str, Any]) -> Iterator[Strategy]:
    """Every way to give the devices to replica, stage, data and model that divides the model.

    Layers need not divide: stages with a place left empty are charged for it.
    """
    config, cluster = problem.config, problem.cluster
    chip, count = cluster.chip, cluster.num_devices
    islands = cluster.islands
    for model in _choices(fixed, "model", _divisors(count)):
        heads = config.num_heads % model or config.num_kv_heads % model
        sizes = config.mlp_dim % model or config.vocab_size % model
        if heads or sizes or (model > chip.host and not chip.torus_dims and "model" not in fixed):
            continue  # tensor parallelism leaves no host of GPUs: it sends at every layer
        for stage in _choices(fixed, "stage", _divisors(count // model)):
            if not _fills(config.num_layers, stage, "stage" in fixed) or count % (model * stage):
                continue
            rest = count // (model * stage)
            for replica in _choices(fixed, "replica", sorted({1, islands})):
                data = rest // replica
                if rest % replica or data not in _choices(fixed, "data", [data]):
                    continue
                if problem.global_batch % rest:
                    continue
                layout = Strategy(replica=replica, stage=stage, data=data, model=model)
                if _crosses_well(cluster, layout):
                    yield layout


def _crosses_well(cluster: Cluster, layout: Strategy) -> bool:
    """Whether the slices can be laid on the outer axes, as `make_mesh` wants them."""
    if not cluster.chip.torus_dims:
        return True
    return (layout.replica * layout.stage * layout.data) % cluster.slices == 0


def variants(problem: Problem, layout: Strategy, fixed: dict[str, Any]) -> Iterator[list[Strategy]]:
    """For every schedule, microbatches, ZeRO level and rules: its remats, fastest first."""
    local = problem.global_batch // (layout.replica * layout.data)
    split_rules = ["megatron+sp", None] if layout.model > 1 else [None]
    if problem.seq_len % layout.model:
        split_rules = [None]
    for name, chunks in _schedules(layout.stage, problem.config.num_layers, fixed):
        for microbatches in _choices(fixed, "microbatches", _divisors(local)):
            if local % microbatches or (chunks > 1 and microbatches % layout.stage):
                continue
            for zero in _choices(fixed, "zero", [1, 3] if layout.data > 1 else [1]):
                for rules in _choices(fixed, "rules", split_rules):
                    remats = _choices(fixed, "remat", REMATS)
                    on_tpu = problem.cluster.chip.platform == "tpu"
                    if on_tpu and layout.stage > 1 and layout.model > 1 and name != "gpipe":
                        # XLA:TPU's partitioner would abort: `make_train_step` refuses these.
                        remats = [remat for remat in remats if remat != "stage"]
                    yield [
                        replace(
                            layout,
                            schedule=name,
                            chunks=chunks,
                            microbatches=microbatches,
                            zero=zero,
                            rules=rules,
                            remat=remat,
                            precision=problem.precision,
                        )
                        for remat in remats
                    ]


def _fills(num_layers: int, parts: int, is_fixed: bool = False) -> bool:
    """Whether so many stages x chunks are worth a try: each has a layer, and padding is small.

    >>> _fills(26, 4), _fills(26, 8), _fills(30, 8), _fills(5, 4)
    (True, False, True, False)

    Args:
      is_fixed: whether the user wants just these, which the step runs with any number of layers
        from `parts` on.
    """
    places = num_places(num_layers, parts)
    if is_fixed:
        return num_layers >= parts
    # Padding fills the last groups: with a whole group of it a stage has nothing to do.
    padding = places - num_layers
    return padding < places // parts and padding < MOST_PADDING * num_layers


def _schedules(stage: int, num_layers: int, fixed: dict[str, Any]) -> list[tuple[str, int]]:
    """GPipe has the bubble of 1F1B and more in flight: only where it is asked for."""
    found = [("1f1b", 1)]
    if stage > 1:
        filled = [v for v in range(2, 9) if _fills(num_layers, stage * v, "chunks" in fixed)]
        found += [("interleaved", chunks) for chunks in filled]
        found.append(("gpipe", 1))
    names = _choices(fixed, "schedule", ["1f1b", "interleaved"])
    return [
        (name, chunks)
        for name, chunks in found
        if name in names and chunks in _choices(fixed, "chunks", [chunks])
    ]


def _best_of(
    problem: Problem, variants: Sequence[list[Strategy]], links: dict[str, Link]
) -> Plan | None:
    """The fastest that fits, or the smallest; of one variant's remats the first that fits."""
    best: Plan | None = None
    smallest: Plan | None = None
    limit = problem.memory_limit_bytes
    for remats in variants:
        for strategy in remats:
            needs = problem.memory(strategy)
            if needs.total > limit:
                if smallest is None or needs.total < _size(smallest):
                    smallest = Plan(strategy, needs, None, links)
                continue
            time = problem.time(strategy, links)
            if best is None or best.time is None or time.total < best.time.total:
                best = Plan(strategy, needs, time, links)
            break
    return best or smallest


def _nothing_divides(problem: Problem, fixed: dict[str, Any]) -> str:
    config, count = problem.config, problem.cluster.num_devices
    given = ", ".join(f"{name}={value}" for name, value in fixed.items())
    return (
        f"no layout of {count} devices divides {config.num_layers} layers, {config.num_heads} and "
        f"{config.num_kv_heads} heads and a batch of {problem.global_batch}"
        f"{f' with {given}' if given else ''}: use a global_batch that is a multiple of {count}, "
        "or another number of devices."
    )


def _size(plan: Plan) -> int:
    return plan.memory.total


def _choices(fixed: dict[str, Any], name: str, otherwise: Sequence[Any]) -> Sequence[Any]:
    return [fixed[name]] if name in fixed else otherwise


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
