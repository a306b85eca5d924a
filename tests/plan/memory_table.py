"""Compiles every triple for absent TPUs and writes what the compiler says beside the prediction.

Run `python tests/plan/memory_table.py compile docs/memory.json` where libtpu is installed; it goes
on where it stopped. `... table docs/memory.json docs/memory.md` compares, and compiles nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.plan.triples import HELD_OUT, MODELS, TRIPLES, Triple

EVERY = (*TRIPLES, *HELD_OUT)

# XLA:TPU for absent chips asks no metadata server and no other host.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
ACCELERATORS = {"v5e": "v5litepod-16", "v5p": "v5p-128", "v6e": "v6e-16"}


def compile_triple(triple: Triple) -> dict:
    """The compiler's memory plan of one triple, in this process."""
    import jax
    import optax
    from jax.experimental import topologies

    import hybrid_jax as hj
    from hybrid_jax.inspect.ledger import ledger
    from hybrid_jax.inspect.memory import memory

    chip, _, shape = triple.devices.partition(":")
    topology = f"{chip}:{shape}"
    extra = {"chips_per_host_bounds": (2, 2, 1)} if shape == "2x2x1" else {}
    devices = topologies.get_topology_desc(topology_name=topology, platform="tpu", **extra).devices
    layout = triple.layout
    train = hj.make_train_step(
        hj.models.Decoder(MODELS[triple.model]),
        optax.adamw(3e-4),
        layout,
        hj.make_mesh(layout, devices),
    )
    start = time.time()
    compiled = train.lower((triple.global_batch, triple.seq_len)).compile()
    seconds = time.time() - start
    plan = memory(compiled)
    text = compiled.as_text()
    assert text is not None
    if folder := os.environ.get("HLO_FOLDER"):
        Path(folder, f"{abs(hash(triple.name))}.hlo").write_text(triple.name + "\n" + text)
    sent = {
        f"{'+'.join(total.axes)} {total.kind} {total.dtype}": [total.count, total.wire_bytes]
        for total in ledger(text, train.mesh).by_axis()
    }
    return {
        "name": triple.name,
        "jax": jax.__version__,
        "seconds": round(seconds, 1),
        "argument": plan.argument,
        "temp": plan.temp,
        "total": plan.total,
        "sent": sent,
    }


def compile_all(path: Path) -> None:
    rows = json.loads(path.read_text()) if path.exists() else {}
    for index, triple in enumerate(EVERY):
        if triple.name in rows:
            continue
        accelerator = ACCELERATORS[triple.devices.partition(":")[0]]
        result = subprocess.run(
            [sys.executable, __file__, "one", str(index)],
            env={**os.environ, **ENVIRONMENT, "TPU_ACCELERATOR_TYPE": accelerator},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if result.returncode:
            print(triple.name, "FAILED", result.stderr[-600:], flush=True)
            continue
        rows = json.loads(path.read_text()) if path.exists() else {}
        rows[triple.name] = json.loads(result.stdout.splitlines()[-1])
        path.write_text(json.dumps(rows, indent=1))
        print(triple.name, rows[triple.name]["total"] / 2**30, flush=True)


def compare(path: Path) -> list[dict]:
    """Prediction and compiler's figure of every triple that was compiled."""
    from hybrid_jax.plan.memory import memory

    compiled = json.loads(path.read_text())
    rows = []
    for triple in EVERY:
        if triple.name in compiled:
            parts = memory(MODELS[triple.model], triple.layout, triple.global_batch, triple.seq_len)
            total = compiled[triple.name]["total"]
            rows.append(
                {
                    "triple": triple,
                    "parts": parts,
                    "compiled": total,
                    "error": parts.total / total - 1,
                }
            )
    return rows


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["one", index]:
            print(json.dumps(compile_triple(EVERY[int(index)])))
        case ["compile", path]:
            compile_all(Path(path))
