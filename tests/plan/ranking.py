"""Times layouts on 8 virtual CPU devices and correlates them with the planner's prediction.

`python tests/plan/ranking.py` prints a table and Spearman's rank correlation. The machine should
have nothing else to do.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from hybrid_jax.config.model import DecoderConfig, preset
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.hardware.calibrate import calibrate
from hybrid_jax.plan.time import step_time
from hybrid_jax.runtime.cpu import force_cpu_devices

CONFIG = preset("nano", num_layers=8, embed_dim=192, num_heads=4, mlp_dim=512, vocab_size=1024)
BATCH, LENGTH = 32, 64
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"data": 8},
    {"data": 8, "remat": "none"},
    {"data": 8, "remat": "stage"},
    {"data": 8, "microbatches": 4},
    {"data": 4, "model": 2},
    {"data": 2, "model": 4},
    {"data": 2, "model": 4, "rules": "megatron+sp"},
    {"stage": 2, "data": 4, "microbatches": 2},
    {"stage": 2, "data": 4, "microbatches": 8},
    {"stage": 4, "data": 2, "microbatches": 4},
    {"stage": 4, "data": 2, "microbatches": 8, "schedule": "interleaved", "chunks": 2},
    {"stage": 8, "microbatches": 8},
    {"stage": 2, "data": 2, "model": 2, "microbatches": 4},
    {"stage": 2, "model": 4, "microbatches": 8},
    {"stage": 4, "model": 2, "microbatches": 16},
    {"data": 4, "model": 2, "zero": 3, "microbatches": 2},
    {"data": 8, "zero": 3},
)


def measure(config: DecoderConfig, strategy: Strategy, repeats: int = 5) -> float:
    """Seconds of the fastest of some steps."""
    import jax
    import numpy as np
    import optax

    import hybrid_jax as hj

    model = hj.models.Decoder(config)
    train = hj.make_train_step(model, optax.adamw(1e-3), strategy, hj.make_mesh(strategy))
    state = train.init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, BATCH, LENGTH), np.int32)
    batch = {"tokens": tokens[0], "targets": tokens[1]}
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, metrics = train.step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation of two lists without ties."""

    def rank(values: list[float]) -> list[int]:
        ordered = sorted(values)
        return [ordered.index(value) for value in values]

    squares = sum((a - b) ** 2 for a, b in zip(rank(first), rank(second), strict=True))
    count = len(first)
    return 1 - 6 * squares / (count * (count**2 - 1))


def main() -> None:
    force_cpu_devices(8)
    cluster = calibrate()
    print(cluster.chip)
    predicted, measured = [], []
    for fields in LAYOUTS:
        strategy = Strategy(**fields, precision="f32")
        predicted.append(step_time(CONFIG, strategy, cluster, BATCH, LENGTH).total)
        measured.append(measure(CONFIG, strategy))
        print(f"{predicted[-1]:8.3f} {measured[-1]:8.3f} s  {strategy.describe()}", flush=True)
    print(f"Spearman {spearman(predicted, measured):.2f} over {len(LAYOUTS)} layouts")


if __name__ == "__main__":
    main()
