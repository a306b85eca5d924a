"""When a step does what: before, in and behind the ticks of its pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_jax.planning.schedule_facts import schedule_facts
from hybrid_jax.planning.search import Plan, Problem
from hybrid_jax.planning.step_time import transfer_seconds
from hybrid_jax.planning.traffic import transfers


@dataclass(frozen=True)
class Phases:
    """Seconds of a step in the order in which they pass; they add up to `StepTime.total`.

    Attributes:
      gather: parameters, once, before the ticks.
      forward, backward: of one microbatch through all layers of a stage, with what they send, and
        with the adding up of gradients.
      head: of one microbatch, the shares of all stages together.
      reduce: gradients, once, behind the ticks.
      update: optimizer.
    """

    gather: float
    forward: float
    backward: float
    head: float
    reduce: float
    update: float


def phases(problem: Problem, plan: Plan) -> Phases:
    """Returns the phases of the step of a plan that fits.

    What is sent in the ticks is split between forward and backward as their FLOPs are:
    recomputation repeats both. On virtual CPU devices idle ticks take no time of their own, so that
    all ticks are drawn shorter.
    """
    time, strategy = plan.time, plan.strategy
    assert time is not None
    once = {"parameters": 0.0, "gradients": 0.0}
    heads = 0.0
    sizes = (problem.config, strategy, problem.global_batch, problem.seq_len)
    for transfer in transfers(*sizes):
        seconds = transfer_seconds(transfer, plan.links[transfer.axis], problem.cluster)
        if transfer.what in once and transfer.count == 1:
            once[transfer.what] += seconds
        elif transfer.what == "head":
            heads += seconds
    sent = sum(time.communication.values()) - sum(once.values()) - heads
    facts = schedule_facts(strategy)
    ticks = facts.f_ticks / strategy.chunks  # as many of them have a B
    work = (time.layers + time.bubble + sent) / ticks
    forward = work * _forward_share(strategy.remat)
    return Phases(
        gather=once["parameters"],
        forward=forward,
        backward=work - forward + time.accumulate / ticks,
        head=(time.head + heads) * strategy.stage / facts.heads,
        reduce=once["gradients"],
        update=time.update,
    )


def _forward_share(remat: str) -> float:
    """Of a layer's matmuls: the backward pass has twice as many, and those it repeats."""
    return 1 / (4 if remat in ("layer", "stage") else 3)
