"""Compiles every triple for absent TPUs and writes what the compiler says beside the prediction.

`python tests/planning/memory_table.py compile docs/memory_model.json`, where libtpu is installed,
compiles what is not in the file yet, and what was compiled for a torus with other links or lacks a
ledger; `... table docs/memory_model.json docs/memory_model.md` compares, and compiles nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from triples import HELD_OUT, MODELS, TRIPLES, Triple

from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.memory import Memory, memory
from hybrid_jax.planning.toolchains import absent_devices, environment, tpu_topology

EVERY = (*TRIPLES, *HELD_OUT)


def compile_triple(triple: Triple) -> dict:
    """The compiler's memory plan of one triple, in this process."""
    import jax
    import optax

    import hybrid_jax as hj
    from hybrid_jax.analysis.ledger import ledger
    from hybrid_jax.analysis.memory import memory as compiled_memory

    layout = triple.layout
    train = hj.make_train_step(
        hj.models.Decoder(MODELS[triple.model]),
        optax.adamw(3e-4),
        layout,
        hj.make_mesh(layout, absent_devices(Cluster.of(triple.devices))),
    )
    start = time.time()
    compiled = train.lower((triple.global_batch, triple.seq_len)).compile()
    seconds = time.time() - start
    plan = compiled_memory(compiled)
    text = compiled.as_text()
    assert text is not None
    sent = {
        f"{'+'.join(total.axes)} {total.kind} {total.dtype}": [total.count, total.wire_bytes]
        for total in ledger(text, train.mesh).by_axis()
    }
    return {
        "jax": jax.__version__,
        "wrap": wrap(triple),
        "compile_seconds": round(seconds, 1),
        "argument": plan.argument,
        "temp": plan.temp,
        "total": plan.total,
        "sent": sent,
    }


def wrap(triple: Triple) -> list[bool]:
    """Which dims of the triple's torus close to rings."""
    return list(tpu_topology(Cluster.of(triple.devices))["wrap"])


def is_current(triple: Triple, compiled: dict) -> bool:
    """Whether a row was compiled for the torus that exists (the first were for open dims), and has
    a ledger (the first missed gathers of ZeRO-3, and are taken out)."""
    return "sent" in compiled and compiled.get("wrap", [False] * 3) == wrap(triple)


def compile_all(path: Path) -> None:
    rows = json.loads(path.read_text()) if path.exists() else {}
    for index, triple in enumerate(EVERY):
        if is_current(triple, rows.get(triple.name, {})):
            continue
        result = subprocess.run(
            [sys.executable, __file__, "one", str(index)],
            env=environment(Cluster.of(triple.devices), os.environ),
            capture_output=True,
            text=True,
            timeout=3600,
            check=False,
        )
        if result.returncode:
            print(triple.name, "FAILED", result.stderr[-600:], flush=True)
            continue
        rows = json.loads(path.read_text()) if path.exists() else {}
        rows[triple.name] = json.loads(result.stdout.splitlines()[-1])
        path.write_text(json.dumps(rows, indent=1))
        print(triple.name, rows[triple.name]["total"] / 2**30, flush=True)


@dataclass(frozen=True)
class Row:
    """A triple, its predicted memory, and what the compiler planned: all in bytes per device."""

    triple: Triple
    held_out: bool
    parts: Memory
    compiled: dict

    @property
    def is_current(self) -> bool:
        """Whether nothing asks for compiling it anew."""
        return is_current(self.triple, self.compiled)

    @property
    def error(self) -> float:
        """Relative error of the predicted total."""
        return self.parts.total / self.compiled["total"] - 1


def compare(path: Path) -> list[Row]:
    """Prediction and compiler's figure of every triple that was compiled."""
    compiled = json.loads(path.read_text())
    return [
        Row(triple, triple in HELD_OUT, predict(triple), compiled[triple.name])
        for triple in EVERY
        if triple.name in compiled
    ]


def predict(triple: Triple) -> Memory:
    """The planner's memory of a triple."""
    sizes = (triple.global_batch, triple.seq_len)
    return memory(MODELS[triple.model], triple.layout, *sizes)


HEADING = """# Predicted and compiled memory

What the planner predicts for one device beside what XLA:TPU plans for the same step
(`peak_memory_in_bytes` of the executable, compiled ahead of time for absent chips), in GiB.
Made by `tests/planning/memory_table.py`; a test holds this page to the code. The formulas were
fitted to rows 1 to {fitted}; the rest were compiled afterwards.

What the formulas leave out: gpt2-xl has 25 heads of 64, which XLA:TPU pads in some residuals and
not in others (row {padded}); and where it makes an all-reduce of a gradient's reduce-scatter, all
of the gradient is there in f32 at once (row {reduced}).

"""


OLD = """Rows with a star are older: compiled for a torus without the links that close it, or before
the ledger counted all gathers of ZeRO-3.
`python tests/planning/memory_table.py compile docs/memory_model.json` compiles them anew.

"""


PADDED = "gpt2-xl v5e:4x4 32x1024 stage=2 data=8 microbatches=4 zero=3 remat=none"
REDUCED = "gpt2-xl v5e:4x4 64x1024 data=16"


def table(rows: list[Row]) -> str:
    """The page, as Markdown."""
    fitted = sum(not row.held_out for row in rows)
    numbers = {row.triple.name: number for number, row in enumerate(rows, 1)}
    text = HEADING.format(fitted=fitted, padded=numbers[PADDED], reduced=numbers[REDUCED])
    if not all(row.is_current for row in rows):
        text += OLD
    for name, chosen in (
        ("all", rows),
        ("the held-out ones", [row for row in rows if row.held_out]),
    ):
        errors = [abs(row.error) for row in chosen]
        text += (
            f"Error of {name}, {len(chosen)}: median {statistics.median(errors):.1%}, "
            f"worst {max(errors):.1%}.\n\n"
        )
    text += "| | model | devices | batch | strategy | predicted | compiled | error |\n"
    text += "|--:|---|---|---|---|--:|--:|--:|\n"
    for number, row in enumerate(rows, 1):
        triple = row.triple
        cells = (
            f"{number}{'' if row.is_current else ' *'}",
            triple.model,
            triple.devices,
            f"{triple.global_batch} x {triple.seq_len}",
            triple.layout.describe(),
            f"{row.parts.total / 2**30:.2f}",
            f"{row.compiled['total'] / 2**30:.2f}",
            f"{row.error:+.1%}",
        )
        text += f"| {' | '.join(map(str, cells))} |\n"
    return text


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["one", index]:
            print(json.dumps(compile_triple(EVERY[int(index)])))
        case ["compile", path]:
            compile_all(Path(path))
        case ["table", path, page]:
            Path(page).write_text(table(compare(Path(path))))
        case _:
            sys.exit(__doc__)
