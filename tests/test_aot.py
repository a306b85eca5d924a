"""Compiling for absent hardware: llama2-7b on 64 v5p chips, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.toolchains import environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1000),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is absent: pip install 'hybrid-jax[aot]'",
    ),
]

PROGRAM = """
import json, sys, time
import optax
import hybrid_jax as hj
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.toolchains import absent_devices

strategy = hj.Strategy(**json.loads(sys.argv[1]))
model = hj.models.Decoder(hj.models.preset("llama2-7b"))
mesh = hj.make_mesh(strategy, absent_devices(Cluster.of("v5p:4x4x4")))
train = hj.make_train_step(model, optax.adamw(3e-4), strategy, mesh)
start = time.time()
report = hj.inspect(train, (strategy.data * strategy.microbatches, 4096))
ledger = report.ledger
print(json.dumps({
    "seconds": time.time() - start,
    "peak_gib": report.memory.total / 2**30,
    "hlo_bytes": report.hlo_bytes,
    "parts": [[row.num_parts, len({*row.held.tolist()})] for row in report.parameters],
    "data": [
        {"kind": row.kind, "dtype": row.dtype, "count": row.count, "wire_bytes": row.wire_bytes,
         "in_loop": row.in_loop}
        for row in ledger.rows if "data" in row.axes
    ],
}))
"""

LAYERS, VOCABULARY, WIDTH, MLP = 32, 32000, 4096, 11008


def compile_step(**strategy: int) -> dict[str, Any]:
    """What the compiler says of one llama2-7b step, microbatches of 1 x 4096 tokens a device."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(strategy)],
        env=environment(Cluster.of("v5p:4x4x4"), os.environ),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_a_pipeline_compiles_for_64_v5p_chips():
    report = compile_step(stage=4, data=4, model=4, microbatches=8)
    print(report)
    assert report["peak_gib"] < 95  # HBM of a v5p chip
    assert [parts for parts, held in report["parts"] if parts != held or parts == 1] == []
    assert not [row for row in report["data"] if row["kind"] == "all-gather" and row["in_loop"]]


def test_every_matrix_is_gathered_over_the_torus():
    """The dims of 4x4x4 close to rings: a gather of anything but a vector stays one.

    Bytes follow from the model's sizes. Each layer has seven matrices and two norms, gathered
    forward and backward; embedding, output kernel and the last norm are gathered once.
    """
    report = compile_step(data=64, zero=3)
    in_bf16 = [row for row in report["data"] if row["dtype"] == "bf16"]

    def total(kind: str, field: str) -> float:
        return sum(row[field] for row in in_bf16 if row["kind"] == kind)

    matrices = 2 * LAYERS * (4 * WIDTH**2 + 3 * WIDTH * MLP) + 2 * VOCABULARY * WIDTH
    vectors = 2 * LAYERS * 2 * WIDTH + WIDTH
    assert {row["kind"] for row in in_bf16} == {"all-gather", "all-reduce"}
    assert total("all-gather", "count") == 2 * LAYERS * 7 + 2 == 450
    assert total("all-gather", "wire_bytes") == 63 / 64 * 2 * matrices
    assert total("all-reduce", "wire_bytes") == 2 * 63 / 64 * 2 * vectors
