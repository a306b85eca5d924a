"""What the compiler says of a plan, beside what was predicted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.planning.aot_worker import Compiled
from hybrid_jax.tables import byte_unit


@dataclass(frozen=True)
class Verified:
    """One strategy, compiled for devices that need not be there; bytes per device (and step).

    Attributes:
      strategy: the layout.
      memory_limit_bytes: that a step may use of one device.
      predicted: memory, from the planner.
      predicted_sent: by mesh axis.
      predicted_flops: of the matmuls that one device executes.
      compiled: from the compiler.
    """

    strategy: Strategy
    memory_limit_bytes: float
    predicted: int
    predicted_sent: dict[str, float]
    predicted_flops: float
    compiled: Compiled

    @property
    def fits(self) -> bool:
        """Whether it was compiled, and its memory is there."""
        return not self.compiled.failure and self.compiled.total <= self.memory_limit_bytes

    @property
    def error(self) -> float | None:
        """Relative error of the predicted memory; None where the compiler gave none."""
        return self.predicted / self.compiled.total - 1 if self.compiled.total else None

    @property
    def sent(self) -> dict[str, float]:
        """Bytes sent by the mesh axes crossed, "stage+data" say, as the ledger counts them."""
        sent: dict[str, float] = {}
        for total in self.compiled.collectives:
            axes = "+".join(total["axes"])
            sent[axes] = sent.get(axes, 0.0) + total["wire_bytes"]
        return sent

    @property
    def at_most(self) -> frozenset[str]:
        """The keys of `sent` that are bounds: some collectives stand in branches that may not run,
        such as the head's in ticks without one."""
        totals = (total for total in self.compiled.collectives if total["conditional"])
        return frozenset("+".join(total["axes"]) for total in totals)

    @property
    def verdict(self) -> str:
        """Either "fits" or why it is demoted."""
        if self.fits:
            return "fits"
        if self.compiled.total:
            limit = self.memory_limit_bytes
            needs = max(self.compiled.total, limit)  # a refusal may name a part alone
            unit, size = byte_unit(needs)
            return f"does not fit: needs {needs / size:.1f} of {limit / size:.1f} {unit}"
        return self.compiled.failure

    def to_fields(self) -> dict[str, Any]:
        """Returns everything as plain values, for JSON."""
        return {
            "strategy": asdict(self.strategy),
            "fits": self.fits,
            "verdict": self.verdict,
            "error": self.error,
            "predicted": {
                "total": self.predicted,
                "sent": self.predicted_sent,
                "hardware_flops": self.predicted_flops,
            },
            "compiled": asdict(self.compiled) | {"sent": self.sent},
        }
