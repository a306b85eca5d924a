"""The door for layouts: what the step cannot run is refused before anything is traced."""

from __future__ import annotations

from jax.sharding import Mesh

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.models.contract import Model


def check_layout(model: Model, strategy: Strategy, mesh: Mesh) -> None:
    """Raises a UserError unless the step runs `model` under `strategy` on `mesh`."""
    if dict(mesh.shape) != strategy.axis_sizes:
        raise UserError(
            f"the mesh {dict(mesh.shape)} is not that of the strategy {strategy.axis_sizes}: "
            "build it with make_mesh(strategy)."
        )
    for axis in ("context", "expert"):
        if mesh.shape[axis] > 1:
            raise UserError(
                f"{axis}={mesh.shape[axis]}: this version trains over replica, data, stage and "
                f"model only; set {axis}=1 and give its devices to another axis."
            )
    parts = strategy.stage * strategy.chunks
    if model.num_layers % parts or (parts > 1 and model.num_layers == 0):
        raise UserError(
            f"num_layers={model.num_layers} does not divide into stage={strategy.stage} x "
            f"chunks={strategy.chunks} equal groups: use a multiple of {parts} layers, or fewer "
            "stages or chunks."
        )
    # A check in XLA:TPU's partitioner (`IsManualSubgroup`, libtpu 0.0.42) ends the process where a
    # tick recomputes a whole chunk beside another forward, and attention is a kernel on `model`.
    pipelined = strategy.stage > 1 and strategy.schedule != "gpipe" and strategy.model > 1
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    if on_tpu and pipelined and strategy.remat == "stage":
        raise UserError(
            f"remat='stage' with stage={strategy.stage}, model={strategy.model} and "
            f"schedule={strategy.schedule!r} makes XLA:TPU abort: use remat='layer', or "
            "schedule='gpipe'."
        )
