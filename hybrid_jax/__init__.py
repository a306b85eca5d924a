"""Hybrid parallelism for large language models in JAX: data, model and pipeline in one program."""

from hybrid_jax import models
from hybrid_jax.bench.compare import bench
from hybrid_jax.checkpoint.checkpointer import Checkpointer
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import RunError, UserError
from hybrid_jax.evaluate import evaluate
from hybrid_jax.generate import generate
from hybrid_jax.inspect.report import inspect
from hybrid_jax.parity import check_parity
from hybrid_jax.pipeline.schedule import schedule
from hybrid_jax.runtime.cpu import force_cpu_devices
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep, make_train_step
from hybrid_jax.trainer import Trainer

__all__ = [
    "Checkpointer",
    "RunError",
    "Strategy",
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
    "make_mesh",
    "make_train_step",
    "models",
    "schedule",
]
