"""Metrics at Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_jax.errors import UserError


class WandbWriter:
    """Sends every record to Weights & Biases; needs `pip install wandb`.

    A run resumed in the same folder is resumed there too: its id is kept in `wandb-id.txt`.

    Args:
      project: where the run appears.
      name: of the run; None: Weights & Biases invents one.
      config: what the run was configured with.
      folder: of its local files; None: `wandb/` in the working directory.

    Raises:
      UserError: wandb is not installed, or nobody is logged in.
    """

    name, essential = "Weights & Biases", False

    def __init__(
        self,
        project: str,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError:
            raise UserError(
                f"train.wandb_project={project!r} needs Weights & Biases: `pip install wandb`, or "
                "set train.wandb_project=null."
            ) from None
        path = None if folder is None else Path(folder) / "wandb-id.txt"
        known = path.read_text().strip() if path is not None and path.exists() else None
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                config=None if config is None else dict(config),
                dir=None if folder is None else str(folder),
                id=known,
                resume="allow",
            )
        except wandb.Error as error:
            raise UserError(
                f"train.wandb_project={project!r}: {' '.join(str(error).split())} Or set "
                "WANDB_MODE=offline."
            ) from None
        if path is not None and known is None:
            path.write_text(f"{self._run.id}\n")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
