"""Hybrid parallelism for large language models in JAX: data, model and pipeline in one program."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_jax import models
    from hybrid_jax.analysis.report import inspect
    from hybrid_jax.benchmark.compare import bench
    from hybrid_jax.checkpoint.checkpointer import Checkpointer
    from hybrid_jax.config.strategy import Strategy
    from hybrid_jax.errors import RunError, UserError
    from hybrid_jax.evaluation import evaluate
    from hybrid_jax.generation.sampling import generate
    from hybrid_jax.nonfinite import locate_nonfinite
    from hybrid_jax.parity import check_parity
    from hybrid_jax.pipeline.schedules import schedule
    from hybrid_jax.pipeline.task_table import Schedule
    from hybrid_jax.pipeline.tasks import Task
    from hybrid_jax.planning.planner import plan
    from hybrid_jax.runtime.cpu import force_cpu_devices
    from hybrid_jax.sharding.mesh import make_mesh
    from hybrid_jax.train.state import TrainState
    from hybrid_jax.train.step import TrainStep, make_train_step
    from hybrid_jax.trainer import Trainer

__all__ = [
    "Checkpointer",
    "RunError",
    "Schedule",
    "Strategy",
    "Task",
    "TrainState",
    "TrainStep",
    "Trainer",
    "UserError",
    "bench",
    "check_parity",
    "evaluate",
    "force_cpu_devices",
    "generate",
    "inspect",
    "locate_nonfinite",
    "make_mesh",
    "make_train_step",
    "models",
    "plan",
    "schedule",
]

# Where each public name lives. It is imported when it is first used: what needs no JAX (help,
# preparing data and its worker processes) starts without it.
_HOMES = {
    "Checkpointer": "checkpoint.checkpointer",
    "RunError": "errors",
    "Schedule": "pipeline.task_table",
    "Strategy": "config.strategy",
    "Task": "pipeline.tasks",
    "TrainState": "train.state",
    "TrainStep": "train.step",
    "Trainer": "trainer",
    "UserError": "errors",
    "bench": "benchmark.compare",
    "check_parity": "parity",
    "evaluate": "evaluation",
    "force_cpu_devices": "runtime.cpu",
    "generate": "generation.sampling",
    "inspect": "analysis.report",
    "locate_nonfinite": "nonfinite",
    "make_mesh": "sharding.mesh",
    "make_train_step": "train.step",
    "plan": "planning.planner",
    "schedule": "pipeline.schedules",
}


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("hybrid_jax.models")
    if name not in _HOMES:
        raise AttributeError(f"module 'hybrid_jax' has no attribute {name!r}")
    value = getattr(import_module(f"hybrid_jax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
