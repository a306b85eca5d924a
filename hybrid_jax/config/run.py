"""Everything a run is made of, checked together before any device is touched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from hybrid_jax.config.checkpoint import CheckpointConfig
from hybrid_jax.config.checks import multiples_near, shown
from hybrid_jax.config.data import DataConfig
from hybrid_jax.config.depth import check_depth
from hybrid_jax.config.fields import Whole, check_fields
from hybrid_jax.config.model import DecoderConfig, preset
from hybrid_jax.config.optimizer import OptimizerConfig
from hybrid_jax.config.paths import is_folder
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.config.train import TrainConfig
from hybrid_jax.errors import UserError

_NUM_BYTES = 256
CpuDevices = Annotated[int, Whole(at_least=1, at_most=4096)]


@dataclass(frozen=True)
class RunConfig:
    """One training run: what a file in `configs/` says.

    >>> RunConfig().model.num_layers
    4

    Attributes:
      model: the decoder.
      strategy: its layout over the devices.
      optimizer: the update rule.
      data: the text and its batches.
      train: length of the run and what it reports.
      checkpoint: when it saves its state, and where it begins.
      cpu_devices: virtual CPU devices to run on, of all processes together; None: the devices
        that JAX finds.

    Raises:
      UserError: sections that do not fit each other.
    """

    model: DecoderConfig = field(default_factory=lambda: preset("nano"))
    strategy: Strategy = field(default_factory=Strategy)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cpu_devices: CpuDevices | None = None

    def __post_init__(self):
        check_fields("", self)
        self._check_devices()
        check_depth(self.model.num_layers, self.strategy, name="model.num_layers")
        self._check_heads()
        self._check_batch()
        self._check_lengths()
        self._check_vocabulary()
        self._check_schedule()
        self._check_checkpoints()

    def _check_devices(self):
        if self.cpu_devices is None:
            return
        needed = self.strategy.num_devices
        if self.cpu_devices != needed:
            sizes = self.strategy.axis_sizes.items()
            product = " x ".join(f"{axis}={size}" for axis, size in sizes if size > 1)
            raise UserError(
                f"cpu_devices={self.cpu_devices} must be the product of the strategy's axes, "
                f"{product or 'all 1'}: set cpu_devices={needed}, or change an axis."
            )

    def _check_heads(self):
        if isinstance(self.strategy.rules, tuple):
            return  # own rules may split heads otherwise; placing the parameters checks them
        for name in ("num_heads", "num_kv_heads"):
            heads, shards = getattr(self.model, name), self.strategy.model
            if heads % shards:
                raise UserError(
                    f"model.{name}={heads} must be a multiple of strategy.model={shards}, which "
                    f"splits heads: use {multiples_near(heads, shards)}, or another model axis."
                )

    def _check_batch(self):
        strategy, batch = self.strategy, self.data.global_batch
        shards = strategy.replica * strategy.data * strategy.expert
        unit = shards * strategy.microbatches
        if batch % unit:
            raise UserError(
                f"data.global_batch={batch} must be a multiple of {unit} ({shards} data shards x "
                f"strategy.microbatches={strategy.microbatches}): use "
                f"{multiples_near(batch, unit)}, or change strategy.microbatches."
            )

    def _check_lengths(self):
        longest = self.model.max_length
        if self.data.seq_len > longest:
            raise UserError(
                f"data.seq_len={self.data.seq_len} must be at most model.max_length={longest}: "
                "shorten the one or raise the other."
            )
        if not self.train.sample_tokens:
            return
        prompt = len(self.train.sample_prompt.encode())
        if prompt >= longest:
            raise UserError(
                f"train.sample_prompt has {prompt} tokens, but must have less than "
                f"model.max_length={longest}: shorten it."
            )
        sample = prompt + self.train.sample_tokens
        if not self.train.sample_prompt:
            raise UserError(
                "train.sample_prompt='' must not be empty: give the text that the sample begins "
                "with, or set train.sample_tokens=0."
            )
        if sample > longest:
            raise UserError(
                f"train.sample_tokens={self.train.sample_tokens} and the prompt make {sample} "
                f"tokens, but model.max_length={longest}: set train.sample_tokens to at most "
                f"{longest - prompt}."
            )

    def _check_vocabulary(self):
        # A folder is a prepared corpus, which says its vocabulary when it is opened.
        texts = [source.path for source in self.data.mixture if not is_folder(source.path)]
        if texts and self.model.vocab_size < _NUM_BYTES:
            raise UserError(
                f"model.vocab_size={self.model.vocab_size} must be at least {_NUM_BYTES}: "
                f"{shown(texts[0])} is text, read as bytes."
            )

    def _check_schedule(self):
        warmup, steps = self.optimizer.warmup_steps, self.train.steps
        if warmup and warmup >= steps:
            raise UserError(
                f"optimizer.warmup_steps={warmup} must be less than train.steps={steps}: "
                "shorten the warm-up or train longer."
            )

    def _check_checkpoints(self):
        if self.checkpoint.every is not None and self.checkpoint_folder is None:
            raise UserError(
                f"checkpoint.every={self.checkpoint.every} needs a folder: set train.output_dir or "
                "checkpoint.folder."
            )

    @property
    def checkpoint_folder(self) -> str | None:
        """Where the run saves its states; None: nowhere."""
        if self.checkpoint.folder is not None or self.train.output_dir is None:
            return self.checkpoint.folder
        return f"{self.train.output_dir}/checkpoints"
