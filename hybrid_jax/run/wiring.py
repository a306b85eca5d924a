"""From a configuration to the objects of a run: the one place that wires them together."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from hybrid_jax.config.run import RunConfig
from hybrid_jax.data.batches import Batches, EvaluationBatches
from hybrid_jax.data.open import check_sources, open_source
from hybrid_jax.data.prefetch import Prefetch
from hybrid_jax.data.source import TokenSource
from hybrid_jax.data.unigram import unigram_loss
from hybrid_jax.models.decoder import Decoder
from hybrid_jax.run.devices import join_processes, start_devices
from hybrid_jax.runtime.agree import check_agreement
from hybrid_jax.sharding.doctor import Finding, examine
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.sharding.rules import resolve_rules
from hybrid_jax.train.optimizer import make_optimizer
from hybrid_jax.train.step import TrainStep, make_train_step


@dataclass(frozen=True)
class Run:
    """The objects of one training run.

    Attributes:
      config: what they were built from.
      model: the decoder.
      train: its train step on the mesh.
      batches: training batches, made ahead on a thread.
      validation: held-out batches.
      unigram_loss: loss of token frequencies alone on `validation`, in nats per token: what a
        trained model has to beat.
      bytes_per_token: of the held-out text, for losses in bits per byte.
      data_fingerprint: all that `batches` depend on; a run resumes exactly only with the same.
    """

    config: RunConfig
    model: Decoder
    train: TrainStep
    batches: Prefetch
    validation: EvaluationBatches
    unigram_loss: float
    bytes_per_token: float
    data_fingerprint: str


def build(config: RunConfig) -> Run:
    """Returns the objects of the run that `config` describes; nothing is compiled yet.

    Raises:
      UserError: too few or too many devices, no such text, a model that does not divide, or
        processes that were started differently.
      TemporaryError: a process is missing.
    """
    join_processes(config)  # first, so that a text that is missing on one host ends all processes
    batches, validation = build_data(config)
    check_agreement({"the data": batches.fingerprint})
    train = build_train_step(config)
    held_out = validation.sources
    return Run(
        config=config,
        model=train.model,  # pyright: ignore[reportArgumentType]
        train=train,
        # Every process makes every batch whole, millions of tokens per second: the data then is the
        # same whatever the number of processes and whichever of them holds a row.
        batches=Prefetch(batches),
        validation=validation,
        unigram_loss=unigram_loss(batches, validation),
        bytes_per_token=sum(s.num_bytes for s in held_out) / sum(s.num_tokens for s in held_out),
        data_fingerprint=batches.fingerprint,
    )


def build_data(config: RunConfig) -> tuple[Batches, EvaluationBatches]:
    """Returns the training batches and the held-out ones; reads files, starts no device.

    Raises:
      UserError: no such text or corpus, too little in it, or one that the model cannot read.
    """
    data, mixture = config.data, config.data.mixture
    sources = [open_source(source.path) for source in mixture]
    check_sources(sources, config.model.vocab_size)
    parts = [source.split(data.validation_fraction) for source in sources]
    weights = [source.weight for source in mixture]
    sizes = {"global_batch": data.global_batch, "seq_len": data.seq_len}
    held_out = [part for _, part in parts]
    if config.train.eval_batches is not None:
        num_rows = config.train.eval_batches * data.global_batch
        held_out = [
            _first_rows(source, num_rows * weight, data.seq_len)
            for source, weight in zip(held_out, weights, strict=True)
        ]
    train = [part for part, _ in parts]
    return (
        Batches(train, weights=weights, seed=data.seed, **sizes),
        EvaluationBatches(held_out, **sizes),
    )


def _first_rows(source: TokenSource, num_rows: float, seq_len: int) -> TokenSource:
    """The beginning of a source, at least a row; one token more: the last input's target."""
    return source.first(max(1, int(num_rows)) * seq_len + 1)


def build_train_step(config: RunConfig) -> TrainStep:
    """Returns the train step alone, without data; starts virtual CPU devices where asked to."""
    start_devices(config)
    model = Decoder(config.model)
    return make_train_step(
        model,
        make_optimizer(config.optimizer, config.train.steps, model.axes()),
        config.strategy,
        make_mesh(config.strategy),
        clip_norm=config.optimizer.clip_norm,
        spike_sigmas=config.train.spike_sigmas,
        seed=config.train.seed,
    )


def examine_layout(config: RunConfig) -> tuple[Finding, ...]:
    """Returns all that the sharding doctor finds; `build_train_step` raises its first error."""
    start_devices(config)
    model, strategy = Decoder(config.model), config.strategy
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rules, mesh = resolve_rules(strategy.rules), make_mesh(strategy)
    return examine(shapes, model.axes(), rules, mesh, zero=strategy.zero)[1]
