"""The log of a run and where it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax

from hybrid_jax.config.model import flops_per_token
from hybrid_jax.config.optimizer import learning_rate
from hybrid_jax.config.run import RunConfig
from hybrid_jax.errors import unwritable
from hybrid_jax.hardware.chips import peak_flops
from hybrid_jax.metrics.background import Writer
from hybrid_jax.metrics.files import JsonlWriter, TensorBoardWriter
from hybrid_jax.metrics.log import Log
from hybrid_jax.metrics.wandb import WandbWriter
from hybrid_jax.run.wiring import Run


def build_log(run: Run, writers: Sequence[Writer] = (), resume_from: int | None = None) -> Log:
    """Returns the log of a run, which writes to `writers` and to where its config says.

    With several processes only the first one writes where the config says; the logs of the others
    keep the latest values, which are the same.

    Args:
      writers: more places, such as the terminal.
      resume_from: the step from which the run resumes: what an earlier one wrote beyond it to
        `output_dir` is dropped; None: it stays.

    Raises:
      UserError: the folder cannot be written to, or Weights & Biases cannot be reached.
      RunError: the disk is full or broken.
    """
    config, devices = run.config, run.train.mesh.devices
    peak = peak_flops(devices.flat[0].device_kind)
    return Log(
        [*writers, *_make_writers(config, resume_from)],
        every=config.train.log_every,
        tokens_per_step=config.data.global_batch * config.data.seq_len,
        flops_per_token=flops_per_token(config.model, config.data.seq_len),
        peak_flops=None if peak is None else peak * devices.size,
        learning_rate=lambda update: learning_rate(config.optimizer, update, config.train.steps),
        input_wait=lambda: run.batches.wait_seconds,
    )


def _make_writers(config: RunConfig, resume_from: int | None) -> list[Writer]:
    project, folder = config.train.wandb_project, config.train.output_dir
    path: Path | None = None
    writers: list[Writer] = []
    try:
        if folder is not None:
            path = Path(folder)
            path.mkdir(parents=True, exist_ok=True)
        if jax.process_index() != 0:
            return []
        if path is not None:
            writers.append(JsonlWriter(path / "metrics.jsonl", resume_from))
            writers.append(TensorBoardWriter(path, resume_from))
        if project is not None:
            name = None if path is None else path.resolve().name
            writers.append(WandbWriter(project, name, asdict(config), path))
    except OSError as error:
        remedy = "choose a folder that you may write to, or null for no files"
        problem = f"train.output_dir={folder!r} cannot be written to"
        raise unwritable(problem, error, remedy) from None
    return writers
