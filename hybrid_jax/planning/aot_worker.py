"""Compiles one strategy for devices that need not be there: a job on stdin, its result on stdout.

`python -m hybrid_jax.planning.aot_worker` is a process of its own: compilers read their environment
when JAX starts, and may end the process rather than raise.
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.hardware.chips import CHIPS
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.toolchains import absent_devices


@dataclass(frozen=True)
class Job:
    """One train step to compile.

    Attributes:
      model: fields of a `DecoderConfig`.
      strategy: fields of a `Strategy`.
      chip: a key of `CHIPS`.
      shape, slices: of the `Cluster`.
      global_batch: examples of a step.
      seq_len: tokens of an example.
      optimizer: its name in a config, or "sgd".
    """

    model: dict[str, Any]
    strategy: dict[str, Any]
    chip: str
    shape: tuple[int, ...]
    slices: int
    global_batch: int
    seq_len: int
    optimizer: str

    @property
    def cluster(self) -> Cluster:
        """What the step is compiled for."""
        return Cluster(CHIPS[self.chip], tuple(self.shape), self.slices)


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one train step; bytes per device.

    Attributes:
      total: the most memory in use at once; 0 where nothing is known of it.
      argument, temp: parts of it, as `analysis.memory` reports them; 0 where it was too large.
      seconds: that compiling took.
      device_kind: what it was compiled for, in JAX's words.
      hardware_flops: of the matmuls that one device executes in a step.
      collectives: fields of the ledger's totals (`inspect.ledger.AxisTotal`); none where several
        slices are compiled for.
      failure: why there is no program, on one line.
    """

    total: int = 0
    argument: int = 0
    temp: int = 0
    seconds: float = 0.0
    device_kind: str = ""
    hardware_flops: float = 0.0
    collectives: tuple[dict[str, Any], ...] = ()
    unknown_loops: tuple[str, ...] = ()
    failure: str = ""


def compile_job(job: Job) -> Compiled:
    """Compiles the step of `job` in this process."""
    import optax

    from hybrid_jax.analysis.flops import step_flops
    from hybrid_jax.analysis.ledger import ledger
    from hybrid_jax.analysis.memory import memory
    from hybrid_jax.config.optimizer import OptimizerConfig
    from hybrid_jax.models.decoder import Decoder
    from hybrid_jax.sharding.mesh import make_mesh
    from hybrid_jax.train.optimizer import make_optimizer
    from hybrid_jax.train.step import make_train_step

    model, strategy = Decoder(DecoderConfig(**job.model)), Strategy(**job.strategy)
    mesh = make_mesh(strategy, absent_devices(job.cluster))
    if job.optimizer == "sgd":
        tx = optax.sgd(1e-3)
    else:
        config: Any = {"name": job.optimizer}
        tx = make_optimizer(OptimizerConfig(**config), 1000, model.axes())
    train = make_train_step(model, tx, strategy, mesh, clip_norm=1.0)
    start = time.perf_counter()
    compiled = train.lower((job.global_batch, job.seq_len)).compile()
    seconds = time.perf_counter() - start
    plan, text = memory(compiled), compiled.as_text()
    assert text is not None, "this backend gives no HLO text"
    flops = step_flops(train, (job.global_batch, job.seq_len), text)
    # The program of several slices is that of one: what crosses them is no collective there.
    counted = ledger(text, mesh) if job.slices == 1 else None
    return Compiled(
        total=plan.total,
        argument=plan.argument,
        temp=plan.temp,
        seconds=round(seconds, 1),
        device_kind=mesh.devices.flat[0].device_kind,
        # Attention kernels are counted as if they computed all scores; causal ones skip half.
        hardware_flops=flops.hardware - flops.attention_kernels / 2,
        collectives=tuple(map(asdict, counted.by_axis())) if counted else (),
        unknown_loops=counted.unknown_loops if counted else (),
    )


# XLA:TPU's words: "Used 18.20G of 15.75G hbm", or "(44.53G) exceeds available HBM (15.75G)".
_TOO_LARGE = re.compile(
    r"(?:Used |\()([\d.]+)([KMGT])(?: of [\d.]+[KMGT] hbm|\) exceeds available)"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def needed_bytes(message: str) -> int:
    """What a program needs that the compiler refuses as too large; 0 where it says nothing of it.

    >>> needed_bytes("Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm.") / 2**30
    18.5
    """
    found = _TOO_LARGE.search(message)
    return round(float(found[1]) * _UNITS[found[2]]) if found else 0


def main() -> None:
    """Reads a job as JSON from stdin and writes what came of it to stdout."""
    job = Job(**json.load(sys.stdin))
    try:
        result = compile_job(job)
    except Exception as error:  # whatever it is: the reader decides what to make of it
        lines = str(error).strip().splitlines() or [type(error).__name__]
        result = Compiled(total=needed_bytes(str(error)), failure=lines[0][:300])
    print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
