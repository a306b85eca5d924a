"""Compiling for absent hardware: llama2-7b on 64 v5p chips, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.plan.compilers import environment

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
from jax.experimental import topologies
import hybrid_jax as hj

microbatches = int(sys.argv[1])
strategy = hj.Strategy(stage=4, data=4, model=4, microbatches=microbatches)
devices = topologies.get_topology_desc(topology_name="v5p:4x4x4", platform="tpu").devices
model = hj.models.Decoder(hj.models.preset("llama2-7b"))
train = hj.make_train_step(model, optax.adamw(3e-4), strategy, hj.make_mesh(strategy, devices))
start = time.time()
report = hj.inspect(train, (4 * microbatches, 4096))
print(json.dumps({
    "seconds": time.time() - start,
    "peak_gib": report.memory.total / 2**30,
    "gathers_in_loop": report.ledger.count("all-gather", axis="data", in_loop=True),
    "data_gib": report.ledger.wire_bytes(axis="data") / 2**30,
    "hlo_bytes": report.hlo_bytes,
}))
"""


def compile_step(microbatches: int) -> dict[str, float]:
    """What the compiler says of one llama2-7b step, microbatches of 1 x 4096 tokens a device."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(microbatches)],
        env=environment(Cluster.of("v5p:4x4x4"), os.environ),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_llama2_7b_compiles_for_64_v5p_chips():
    report = compile_step(8)
    print(report)
    assert report["peak_gib"] < 95  # HBM of a v5p chip
    assert report["gathers_in_loop"] == 0
