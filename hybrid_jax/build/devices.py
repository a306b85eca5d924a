"""Starts the devices of a run, and lets the planner lay a run over them."""

from __future__ import annotations

import jax

from hybrid_jax.config.draft import Draft
from hybrid_jax.config.run import RunConfig
from hybrid_jax.errors import UserError
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.plan.planner import plan
from hybrid_jax.plan.report import PlanReport
from hybrid_jax.runtime.cpu import force_cpu_devices
from hybrid_jax.runtime.distributed import initialize_from_environment


def start_devices(cpu_devices: int | None) -> None:
    """Joins the other processes of a run and makes virtual CPU devices where they are asked for.

    Raises:
      UserError: processes do not divide the devices, or JAX has started already.
    """
    num_processes = initialize_from_environment()
    if cpu_devices is None:
        return
    if cpu_devices % num_processes:
        raise UserError(
            f"cpu_devices={cpu_devices} cannot be shared by {num_processes} processes: "
            "start a number of processes that divides it."
        )
    force_cpu_devices(cpu_devices // num_processes)


def lay_out(draft: Draft) -> RunConfig:
    """Returns the run with the strategy of its file; `auto` is the planner's best for the devices.

    The same devices give the same strategy, so that a run that is started again goes on as it was;
    on others it goes on from the same checkpoints.

    Raises:
      UserError: sections that do not fit each other, or nothing that fits the devices.
    """
    return draft.laid_out(plan_draft(draft).best if draft.auto else None)


def plan_draft(
    draft: Draft, devices: str | None = None, memory_gib: float | None = None, top: int = 8
) -> PlanReport:
    """Returns the plan of a draft's model and batch, for the devices at hand or those named.

    Fields that stand beside `strategy: auto` are kept.

    Raises:
      UserError: see `hybrid_jax.plan`.
    """
    if devices is None:
        start_devices(draft.cpu_devices)
    fixed = {name: value for name, value in draft.given.items() if name != "precision"}
    return plan(
        draft.model,
        devices or Cluster.of(jax.devices()),
        draft.data.global_batch,
        draft.data.seq_len,
        optimizer=draft.optimizer.name,
        precision=draft.precision,
        memory_gib=memory_gib,
        top=top,
        **(fixed if draft.auto else {}),
    )
