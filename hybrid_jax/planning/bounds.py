"""What the pipelines of other frameworks can reach at best: GPipe, and circular pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.planning.memory import memory
from hybrid_jax.planning.search import Problem, layouts, variants
from hybrid_jax.planning.step_time import StepTime


@dataclass(frozen=True)
class Peer:
    """One layout of a pipeline that runs all forwards before the first backward.

    Attributes:
      strategy: its layout; a circular one reads `schedule="interleaved"`, whose placement of layers
        and number of ticks it shares.
      time: of a step, with what a device sends and computes in it.
    """

    strategy: Strategy
    time: StepTime

    @property
    def sent_bytes(self) -> float:
        """Of one device in a step."""
        return sum(self.time.sent_bytes.values())


@dataclass(frozen=True)
class Bounds:
    """The best that pipelines of one kind and so many stages can do in the same memory.

    Attributes:
      kind: "gpipe", or "circular": every stage has several chunks of layers.
      stage: number of stages.
      sent: the layout that sends least.
      flops: the layout that computes least.
      fastest: the layout with the shortest step.
    """

    kind: str
    stage: int
    sent: Peer
    flops: Peer
    fastest: Peer


@cache
def bounds(problem: Problem, stage: int) -> tuple[Bounds, ...]:
    """Returns the bounds of each kind over every layout that fits; none where no layout does.

    GPipe (Huang et al. 2019) keeps the residuals of all microbatches, and so do circular pipelines
    as in praxis and MaxText, whose backward pass is the transpose of a loop over all forwards. All
    else is taken to be as good as here, by the same model of memory and traffic: the token-split
    head, one gather and one reduction of the parameters in a step. What those frameworks really
    send is more.
    """
    found = []
    for kind, schedule in (("gpipe", "gpipe"), ("circular", "interleaved")):
        peers = list(_peers(problem, {"stage": stage, "schedule": schedule}))
        if peers:
            found.append(
                Bounds(
                    kind,
                    stage,
                    sent=min(peers, key=lambda peer: (peer.sent_bytes, peer.time.hardware_flops)),
                    flops=min(peers, key=lambda peer: (peer.time.hardware_flops, peer.sent_bytes)),
                    fastest=min(peers, key=lambda peer: peer.time.total),
                )
            )
    return tuple(found)


def _peers(problem: Problem, fixed: dict[str, Any]) -> Iterator[Peer]:
    for layout in layouts(problem, fixed):
        links = problem.cluster.links(layout)
        for remats in variants(problem, layout, fixed):
            for strategy in remats:
                if _needs(problem, strategy) <= problem.room:
                    yield Peer(strategy, problem.time(strategy, links))


def _needs(problem: Problem, strategy: Strategy) -> int:
    """Bytes of one device when every chunk of every microbatch waits for its backward pass."""
    return memory(
        problem.config,
        strategy,
        problem.global_batch,
        problem.seq_len,
        problem.optimizer,
        problem.cluster.chip.platform,
        slots=strategy.chunks * strategy.microbatches,
    ).total
