"""A run as its file says it, where the layout may be left to the planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hybrid_jax.config.checkpoint import CheckpointConfig
from hybrid_jax.config.data import DataConfig
from hybrid_jax.config.fields import check_fields, checked_values
from hybrid_jax.config.model import DecoderConfig, preset
from hybrid_jax.config.optimizer import OptimizerConfig
from hybrid_jax.config.run import CpuDevices, RunConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.config.train import TrainConfig
from hybrid_jax.errors import UserError


@dataclass(frozen=True)
class Draft:
    """A run but for its layout.

    Attributes:
      model, optimizer, data, train, checkpoint, cpu_devices: as in `RunConfig`.
      given: the fields of `Strategy` that the file sets.
      auto: whether the planner is to choose the others (`strategy: auto`).
    """

    model: DecoderConfig = field(default_factory=lambda: preset("nano"))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cpu_devices: CpuDevices | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    auto: bool = False

    def __post_init__(self):
        check_fields("", self)
        object.__setattr__(self, "given", checked_values("strategy", Strategy, self.given))

    @property
    def precision(self) -> str:
        """Of the compute; the planner never chooses it."""
        return self.given.get("precision", Strategy.precision)

    def laid_out(self, strategy: Strategy | None = None) -> RunConfig:
        """Returns the run with this strategy, or with the one that the file says.

        >>> Draft(given={"data": 2}).laid_out().strategy.data
        2

        Raises:
          UserError: sections that do not fit each other, or no strategy where the file says auto.
        """
        if strategy is None:
            if self.auto:
                raise UserError(
                    "strategy: auto needs devices to plan for: use `hybrid_jax.run.lay_out`, or "
                    "write the strategy."
                )
            strategy = Strategy(**self.given)
        return RunConfig(
            model=self.model,
            strategy=strategy,
            optimizer=self.optimizer,
            data=self.data,
            train=self.train,
            checkpoint=self.checkpoint,
            cpu_devices=self.cpu_devices,
        )
