"""Why a plan lost: too large, or what of its time the best plan does not spend."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from hybrid_jax.config.depth import num_places
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.planning.memory import Memory
from hybrid_jax.planning.schedule_facts import schedule_facts
from hybrid_jax.planning.step_time import StepTime
from hybrid_jax.tables import format_bytes

if TYPE_CHECKING:
    from hybrid_jax.planning.search import Plan, Problem


def reason(problem: Problem, plan: Plan, best: Plan) -> str:
    """Returns why `plan` lost against `best`, in a few words; nothing for `best` itself.

    Of what takes longer than in the best, it names what adds most; and padded layers, if any.
    """
    if plan.time is None:
        part, size = _largest(plan.memory)
        return (
            f"needs {_gib(plan.memory.total)} of {_gib(problem.memory_limit_bytes)} GiB, "
            f"{_gib(size)} of them {part.replace('_', ' ')}"
        )
    if plan is best or best.time is None:
        return ""
    parts = _seconds_by_cause(problem, plan, plan.time)
    base = _seconds_by_cause(problem, best, best.time)
    cause = max(parts, key=lambda name: parts[name] - base.get(name, 0.0))
    slower = plan.time.total / best.time.total - 1
    found = f"{slower:+.0%}: {_explain(cause, plan, best)}"
    if padded_layers(problem, plan.strategy):
        found += f"; {padding_note(problem, plan.strategy)}"
    return found


def padded_layers(problem: Problem, strategy: Strategy) -> int:
    """Returns the places of the stages that hold no layer."""
    num_layers = problem.config.num_layers
    return num_places(num_layers, strategy.stage * strategy.chunks) - num_layers


def padding_note(problem: Problem, strategy: Strategy) -> str:
    """Returns what padded layers cost, in a few words."""
    padding, num_layers = padded_layers(problem, strategy), problem.config.num_layers
    return f"{padding} padded layers beside {num_layers} ({padding / num_layers:+.1%} compute)"


def _seconds_by_cause(problem: Problem, plan: Plan, time: StepTime) -> dict[str, float]:
    num_layers = problem.config.num_layers
    # Without padding, which is named by itself.
    layers = time.layers * num_layers / (num_layers + padded_layers(problem, plan.strategy))
    waiting = {"bubble": time.bubble, "accumulate": time.accumulate, "layers": layers}
    return {**waiting, **time.communication}


def _explain(cause: str, plan: Plan, best: Plan) -> str:
    assert plan.time is not None and best.time is not None
    if cause == "bubble":
        return f"bubble {plan.bubble:.0%}"
    if cause == "layers":
        return f"recomputes more (remat={plan.strategy.remat})"
    if cause == "accumulate":
        return f"adds up gradients {schedule_facts(plan.strategy).b_ticks} times"
    sent, other = plan.time.sent_bytes[cause], best.time.sent_bytes.get(cause, 0.0)
    name = plan.links[cause].name
    if other:
        return f"sends {sent / other:.1f}x more over {cause} ({name})"
    return f"sends {format_bytes(sent)} over {cause} ({name})"


def _largest(needs: Memory) -> tuple[str, int]:
    parts = {field.name: getattr(needs, field.name) for field in fields(needs)}
    name = max(parts, key=lambda name: parts[name])
    return name, parts[name]


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.3g}"
