"""Starts the devices of a run, and lets the planner lay a run over them."""

from __future__ import annotations

from typing import Any

import jax

from hybrid_jax.config.draft import Draft
from hybrid_jax.config.run import RunConfig
from hybrid_jax.errors import UserError
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.planner import plan
from hybrid_jax.planning.report import PlanReport
from hybrid_jax.runtime.agree import check_agreement, device_layout
from hybrid_jax.runtime.cpu import force_cpu_devices
from hybrid_jax.runtime.distributed import initialize_from_environment
from hybrid_jax.runtime.fields import flatten_fields, package_versions
from hybrid_jax.runtime.group import current_group


def join_processes(config: RunConfig | Draft) -> int:
    """Joins the other processes of a run and returns how many they are; starts no device.

    Raises:
      UserError: they were started with another config or other versions.
      TemporaryError: one of them is missing.
    """
    first = current_group() is None
    num_processes = initialize_from_environment(
        join_seconds=config.train.join_seconds, peer_seconds=config.train.peer_seconds
    )
    if first and num_processes > 1:
        check_agreement({**config_fields(config), **package_versions()})
    return num_processes


def config_fields(config: RunConfig | Draft) -> dict[str, Any]:
    """Returns what all processes must have alike in a config.

    The paths of texts may differ from host to host: what is read there is compared by content.
    """
    fields = flatten_fields(config)
    paths = ("data.source", "data.sources")
    return {name: value for name, value in fields.items() if name not in paths}


def start_devices(config: RunConfig | Draft) -> None:
    """Joins the other processes of a run and makes virtual CPU devices where they are asked for.

    Raises:
      UserError: processes do not divide the devices, have other ones or another config, or JAX has
        started already.
      TemporaryError: a process is missing.
    """
    num_processes, cpu_devices = join_processes(config), config.cpu_devices
    if cpu_devices is not None:
        _make_cpu_devices(cpu_devices, num_processes)
    if num_processes > 1:
        check_agreement({**config_fields(config), **device_layout()})


def _make_cpu_devices(cpu_devices: int, num_processes: int) -> None:
    if cpu_devices % num_processes:
        raise UserError(
            f"cpu_devices={cpu_devices} cannot be shared by {num_processes} processes: "
            "start a number of processes that divides it."
        )
    force_cpu_devices(cpu_devices // num_processes)


def lay_out(draft: Draft) -> RunConfig:
    """Returns the run with the strategy of its file; `auto` is the planner's best for the devices.

    The same devices give the same strategy, so that a run that is started again resumes as it was;
    on others it resumes from the same checkpoints.

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
      UserError: see `hybrid_jax.planning`.
    """
    if devices is None:
        start_devices(draft)
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
