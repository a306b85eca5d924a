"""How long a train step takes: a roofline of what is computed, and of what is sent beside it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hybrid_jax.config.depth import padded
from hybrid_jax.config.model import DecoderConfig, flops_per_token
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.hardware.links import Link
from hybrid_jax.planning.activations import COMPUTE_BYTES, residual_bytes, widths
from hybrid_jax.planning.parameters import block_leaves, gathered, num_up, shared_leaves, stored
from hybrid_jax.planning.schedule_facts import schedule_facts
from hybrid_jax.planning.traffic import Transfer, transfers

HIDDEN_ON_TPU = 0.5
"""Share of the tensor-parallel traffic that XLA:TPU hides behind matmuls, as windowed einsums; an
assumption. All other traffic is counted in full: the gather and the reduction of a step stand
before and behind the pipeline's loops, those of ZeRO-3 right before and behind their layer, and
a tick ends with its permutes."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one train step on one device, by what they go to.

    Attributes:
      layers: forward, backward and recomputation of all microbatches.
      head: logits, loss and their gradients, this stage's share.
      accumulate: adding up gradients between microbatches.
      bubble: idle ticks of the pipeline.
      communication: by mesh axis, what is not hidden.
      update: optimizer.
      sent_bytes: by mesh axis, what one device sends.
      hardware_flops: of one device, with recomputation, and with the masked work of idle ticks
        where they are not skipped.
      mfu: model FLOPs of the step over what the chips could do in its time.
    """

    layers: float
    head: float
    accumulate: float
    bubble: float
    communication: dict[str, float]
    update: float
    sent_bytes: dict[str, float]
    hardware_flops: float
    mfu: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        parts = (self.layers, self.head, self.accumulate, self.bubble, self.update)
        return sum(parts) + sum(self.communication.values())


def step_time(
    config: DecoderConfig,
    strategy: Strategy,
    cluster: Cluster,
    global_batch: int,
    seq_len: int,
    links: dict[str, Link] | None = None,
) -> StepTime:
    """Returns the time of one train step.

    Args:
      global_batch: examples of all devices in a step.
      seq_len: tokens of an example.
      links: `cluster.links(strategy)`, where the caller has it.
    """
    work = _Work(padded(config, strategy), strategy, cluster, global_batch, seq_len)
    links = cluster.links(strategy) if links is None else links
    seconds: dict[str, float] = {}
    sent: dict[str, float] = {}
    for transfer in transfers(config, strategy, global_batch, seq_len):
        axis = transfer.axis
        time = transfer_seconds(transfer, links[axis], cluster)
        seconds[axis] = seconds.get(axis, 0.0) + time
        size = getattr(strategy, axis)
        sent[axis] = sent.get(axis, 0.0) + transfer.sent_bytes(size)
    layers = work.layers()
    # Virtual devices share their cores: who idles leaves them to the others.
    idles = cluster.chip.platform != "cpu"
    step = StepTime(
        layers=layers,
        head=work.head(),
        accumulate=work.accumulate(),
        bubble=layers * schedule_facts(strategy).idle_share if idles else 0.0,
        communication=seconds,
        update=work.update(),
        sent_bytes=sent,
        hardware_flops=work.hardware_flops(),
        mfu=0.0,
    )
    model_flops = flops_per_token(config, seq_len) * global_batch * seq_len
    peak = work.peak * cluster.num_devices
    return dataclasses.replace(step, mfu=model_flops / peak / step.total)


def transfer_seconds(transfer: Transfer, link: Link, cluster: Cluster) -> float:
    """Returns the seconds of a step that these collectives take and nothing hides."""
    if transfer.kind == "permute":
        seconds = link.permute_seconds(transfer.bytes)
    else:
        seconds = link.seconds(transfer.bytes) * (2 if transfer.kind == "reduce" else 1)
    seconds += transfer.count * cluster.chip.latency
    hidden = transfer.axis == "model" and cluster.chip.platform == "tpu"
    return seconds * (1 - HIDDEN_ON_TPU) if hidden else seconds


class _Work:
    """What one device computes in a step; each part the longer of its FLOPs and its bytes."""

    def __init__(
        self,
        config: DecoderConfig,
        strategy: Strategy,
        cluster: Cluster,
        global_batch: int,
        seq_len: int,
    ):
        self.config, self.strategy, self.chip = config, strategy, cluster.chip
        shards = strategy.replica * strategy.data
        self.tokens = global_batch // shards * seq_len
        self.seq_len = seq_len
        self.entry = COMPUTE_BYTES[strategy.precision]
        self.peak = self.chip.flops_f32 if strategy.precision == "f32" else self.chip.flops_bf16
        self.blocks, self.shared = block_leaves(config), shared_leaves(config)
        microbatch = global_batch // shards // strategy.microbatches
        self.width = widths(config, strategy, microbatch, seq_len)
        self.fused = self.chip.platform != "cpu"

    def seconds(self, flops: float, num_bytes: float) -> float:
        """The longer of the two, at the achievable fractions of the chip's peaks.

        On a CPU their sum: the core that moves the bytes is the one that computes.
        """
        compute = flops / (self.peak * self.chip.matmul_fraction)
        memory = num_bytes / (self.chip.hbm_bandwidth * self.chip.hbm_fraction)
        return compute + memory if self.chip.platform == "cpu" else max(compute, memory)

    def layers(self) -> float:
        """All layers of the stage, all microbatches."""
        layers = self.config.num_layers / self.strategy.stage
        arrays = residual_bytes(self.config, "none", self.width, fused=self.fused)[0]
        arrays += 0 if self.fused else self.width.scores
        kernels = self.entry * gathered(self.blocks, self.strategy) / layers
        forward = 2 * arrays + kernels  # each array is written once and read once
        # Backward: arrays and their gradients; kernels are read and their gradients written.
        again = {"none": 0, "dots": 0.5, "layer": 1, "stage": 1}[self.strategy.remat]
        per_microbatch = (3 + again) * forward
        return layers * self.seconds(
            self._layer_flops(), per_microbatch * self.strategy.microbatches
        )

    def _layer_flops(self) -> float:
        """Of one layer in one step: backward twice the forward, attention's two and a half times.

        Recomputed are: attention ("none" too, on TPU, whose kernel keeps no softmax), and for
        "layer" and "stage" all matmuls but, for "layer", the last, whose result nothing reads.
        """
        config, model = self.config, self.strategy.model
        attention_kernels = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
        mlp = (num_up(config) + 1) * config.mlp_dim
        kernels = 2 * config.embed_dim * (attention_kernels + mlp)
        down = 2 * config.embed_dim * config.mlp_dim
        scores = 4 * self.seq_len * config.num_heads * config.head_dim
        if self.fused:
            scores /= 2  # kernels skip what a causal mask hides
        again = {"none": 0, "dots": 0, "layer": kernels - down, "stage": kernels}
        repeats = 0 if self.strategy.remat == "none" and self.chip.platform != "tpu" else 1
        total = 3 * kernels + again[self.strategy.remat] + (3.5 + repeats) * scores
        return total * self.tokens / model

    def head(self) -> float:
        """Logits, dx and the kernel's gradient; f32 logits are written once and read twice."""
        share = self.tokens / self.strategy.stage / self.strategy.model
        logits = 4 * share * self.config.vocab_size
        flops = 6 * share * self.config.vocab_size * self.config.embed_dim
        return self.seconds(flops, (3 + self.entry / 4) * logits)

    def accumulate(self) -> float:
        """f32 sums are read and written, gradients written and read, for each microbatch.

        The embedding's too, in every backward slot of every stage: a dense gradient of the table.
        """
        b_ticks = schedule_facts(self.strategy).b_ticks
        if b_ticks == 1:
            return 0.0
        blocks = gathered(self.blocks, self.strategy) * self.strategy.microbatches
        if self.strategy.zero == 3:
            blocks = stored(self.blocks, self.strategy) * self.strategy.microbatches
        shared = gathered(self.shared, self.strategy)
        num_bytes = (8 + 2 * self.entry) * (blocks + shared * b_ticks)
        return self.seconds(0, num_bytes)

    def update(self) -> float:
        """Adam reads gradient, parameter and two moments and writes three of them, f32."""
        entries = stored((*self.blocks, *self.shared), self.strategy)
        return self.seconds(0, 4 * 7 * entries)

    def hardware_flops(self) -> float:
        """Of one device in one step."""
        layers = self.config.num_layers / self.strategy.stage
        if not self.strategy.skips_bubbles(self.chip.platform):
            layers *= 1 + schedule_facts(self.strategy).idle_share
        share = self.tokens / self.strategy.stage / self.strategy.model
        head = 6 * share * self.config.vocab_size * self.config.embed_dim
        return layers * self._layer_flops() + head
