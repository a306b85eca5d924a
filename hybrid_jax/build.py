"""From a configuration to the objects of a run: the one place that wires them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.config.model import flops_per_token
from hybrid_jax.config.run import RunConfig
from hybrid_jax.data.batches import Batches, EvaluationBatches
from hybrid_jax.data.text import load_corpus, unigram_loss
from hybrid_jax.errors import UserError
from hybrid_jax.inspect.hardware import peak_flops
from hybrid_jax.metrics.files import JsonlWriter, TensorBoardWriter
from hybrid_jax.metrics.log import Log, Writer
from hybrid_jax.models.decoder import Decoder
from hybrid_jax.runtime.cpu import force_cpu_devices
from hybrid_jax.sharding.doctor import Finding, examine
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.sharding.rules import resolve_rules
from hybrid_jax.train.optimizer import make_learning_rate, make_optimizer
from hybrid_jax.train.step import TrainStep, make_train_step


@dataclass(frozen=True)
class Run:
    """The objects of one training run.

    Attributes:
      config: what they were built from.
      model: the decoder.
      train: its train step on the mesh.
      batches: training batches.
      validation: held-out batches.
      unigram_loss: loss of byte frequencies alone on `validation`, in nats per byte: what a
        trained model has to beat.
    """

    config: RunConfig
    model: Decoder
    train: TrainStep
    batches: Batches
    validation: EvaluationBatches
    unigram_loss: float


def build(config: RunConfig) -> Run:
    """Returns the objects of the run that `config` describes; nothing is compiled yet.

    Raises:
      UserError: too few or too many devices, no such text, or a model that does not divide.
    """
    train = build_train_step(config)
    data = config.data
    corpus = load_corpus(data.source, data.validation_fraction)
    held_out = corpus.validation
    if config.train.eval_batches is not None:
        # One token more: the last input's target.
        held_out = held_out[: config.train.eval_batches * data.global_batch * data.seq_len + 1]
    return Run(
        config=config,
        model=train.model,  # pyright: ignore[reportArgumentType]
        train=train,
        batches=Batches(corpus.train, data.global_batch, data.seq_len, data.seed),
        validation=EvaluationBatches(held_out, data.global_batch, data.seq_len),
        unigram_loss=unigram_loss(corpus.train, held_out[1:]),
    )


def build_train_step(config: RunConfig) -> TrainStep:
    """Returns the train step alone, without data; starts virtual CPU devices where asked to."""
    _start_devices(config)
    model = Decoder(config.model)
    return make_train_step(
        model,
        make_optimizer(config.optimizer, config.train.steps, model.axes()),
        config.strategy,
        make_mesh(config.strategy),
        clip_norm=config.optimizer.clip_norm,
        seed=config.train.seed,
    )


def examine_layout(config: RunConfig) -> tuple[Finding, ...]:
    """Returns all that the sharding doctor finds; `build_train_step` raises its first error."""
    _start_devices(config)
    model, strategy = Decoder(config.model), config.strategy
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rules, mesh = resolve_rules(strategy.rules), make_mesh(strategy)
    return examine(shapes, model.axes(), rules, mesh, zero=strategy.zero)[1]


def _start_devices(config: RunConfig) -> None:
    if config.cpu_devices is not None:
        force_cpu_devices(config.cpu_devices)


def build_log(run: Run, writers: Sequence[Writer] = ()) -> Log:
    """Returns the log of a run, which writes to `writers` and to the files of `output_dir`.

    Raises:
      UserError: the folder cannot be made.
    """
    config, devices = run.config, run.train.mesh.devices
    folder = config.train.output_dir
    if folder is not None:
        path = Path(folder).expanduser()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"train.output_dir={folder!r} cannot be made: {error.strerror}; choose a folder "
                "that you may write to, or null for no files."
            ) from None
        writers = [*writers, JsonlWriter(path / "metrics.jsonl"), TensorBoardWriter(path)]
    peak = peak_flops(devices.flat[0].device_kind)
    schedule = make_learning_rate(config.optimizer, config.train.steps)
    return Log(
        writers,
        every=config.train.log_every,
        tokens_per_step=config.data.global_batch * config.data.seq_len,
        flops_per_token=flops_per_token(config.model, config.data.seq_len),
        peak_flops=None if peak is None else peak * devices.size,
        learning_rates=np.asarray(jax.vmap(schedule)(jnp.arange(config.train.steps))).tolist(),
    )
