"""From a configuration to the objects of a run: the one room that wires them together."""

from hybrid_jax.run.checkpoints import build_checkpointer, start
from hybrid_jax.run.devices import lay_out, plan_draft
from hybrid_jax.run.hooks import build_hooks, build_watchdog
from hybrid_jax.run.lock import lock_folders
from hybrid_jax.run.log import build_log
from hybrid_jax.run.wiring import Run, build, build_data, build_train_step, examine_layout

__all__ = [
    "Run",
    "build",
    "build_checkpointer",
    "build_data",
    "build_hooks",
    "build_log",
    "build_train_step",
    "build_watchdog",
    "examine_layout",
    "lay_out",
    "lock_folders",
    "plan_draft",
    "start",
]
