"""Times layouts on 8 virtual CPU devices and correlates them with the planner's prediction.

`python tests/planning/ranking.py [rounds]` prints a table and Spearman's rank correlation: every
way to lay 8 devices on stage, data and model, once with as few microbatches as keep the stages busy
and everything stored, once with one example in each and layers recomputed. The machine should have
nothing else to do.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hybrid_jax.config.model import preset
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.hardware.calibrate import calibrate
from hybrid_jax.planning.step_time import step_time
from hybrid_jax.runtime.cpu import force_cpu_devices

CONFIG = preset("nano", num_layers=8, embed_dim=256, num_heads=8, mlp_dim=768, vocab_size=2048)
BATCH, LENGTH = 32, 64


def layouts() -> list[Strategy]:
    """Two strategies for every factorisation of 8."""
    found = []
    for stage in (1, 2, 4, 8):
        for model in (1, 2, 4, 8):
            if stage * model > 8:
                continue
            sizes = {"stage": stage, "data": 8 // (stage * model), "model": model}
            many = BATCH // sizes["data"]
            for microbatches, remat in ((stage, "none"), (many, "layer")):
                found.append(
                    Strategy(**sizes, microbatches=microbatches, remat=remat, precision="f32")
                )
    return found


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation of two lists without ties."""

    def rank(values: list[float]) -> list[int]:
        ordered = sorted(values)
        return [ordered.index(value) for value in values]

    squares = sum((a - b) ** 2 for a, b in zip(rank(first), rank(second), strict=True))
    count = len(first)
    return 1 - 6 * squares / (count * (count**2 - 1))


def main(rounds: int) -> None:
    force_cpu_devices(8)
    import hybrid_jax as hj

    strategies, cluster = layouts(), calibrate()
    print(cluster.chip)
    model = hj.models.Decoder(CONFIG)
    report = hj.bench(model, strategies, (BATCH, LENGTH), steps=rounds, progress=print)
    rows = [row for row in report.rows if row.program == "hybrid_jax"]
    measured = [row.step_seconds for row in rows]
    times = [step_time(CONFIG, strategy, cluster, BATCH, LENGTH) for strategy in strategies]
    predicted = [time.total for time in times]
    for time, row in sorted(zip(predicted, rows, strict=True), key=lambda pair: pair[0]):
        print(
            f"predicted {time:6.3f} s, measured {row.step_seconds:6.3f} s "
            f"({row.cpu_seconds:6.3f} CPU): {row.strategy.describe()}"
        )
    print(f"Spearman {spearman(predicted, measured):.2f} over {len(strategies)} layouts")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 8)
