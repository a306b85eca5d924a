"""Plans beside what the compiler says of them, also for devices that are not here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import jax
import pytest
from tiny import decoder

import hybrid_jax as hj
from hybrid_jax.config.optimizer import OptimizerConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning import verify
from hybrid_jax.planning.aot_worker import Compiled, Job, needed_bytes
from hybrid_jax.planning.toolchains import check_compiler, environment
from hybrid_jax.planning.verify import compile_apart
from hybrid_jax.train.optimizer import make_optimizer

pytestmark = pytest.mark.timeout(300)

MODEL = decoder()
SIZES = {"global_batch": 8, "seq_len": 8}
KERNEL = decoder(embed_dim=256, num_heads=4, head_dim=128, mlp_dim=256, max_length=2048).config

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is absent: pip install 'hybrid-jax[aot]'",
)


def has_cuda_compiler() -> bool:
    try:
        check_compiler(Cluster.of("h200:8"))
    except UserError:
        return False
    return True


needs_cuda = pytest.mark.skipif(
    not has_cuda_compiler(),
    reason="JAX's CUDA plugin is absent: pip install 'hybrid-jax[aot-cuda]'",
)


def job(devices: str, config=MODEL.config, batch: int = 8, length: int = 8, **fields) -> Job:
    cluster = Cluster.of(devices)
    return Job(
        model=asdict(config),
        strategy=asdict(Strategy(**fields)),
        chip=cluster.chip.name,
        shape=cluster.shape,
        slices=cluster.slices,
        global_batch=batch,
        seq_len=length,
        optimizer="adamw",
    )


@pytest.fixture(scope="module")
def report():
    return hj.plan(MODEL, "cpu:4", **SIZES, verify=2, top=3)


def test_the_best_plans_are_compiled(report):
    assert [found.strategy for found in report.verified] == [
        plan.strategy for plan in report.plans[:2]
    ]
    assert all(found.fits and found.verdict == "fits" for found in report.verified)
    assert report.best == report.plans[0].strategy
    text = str(report)
    assert "Predicted beside compiled" in text
    assert max(map(len, text.splitlines())) <= 130
    fields = json.loads(report.to_json())["verified"][0]
    assert fields["compiled"]["total"] == report.verified[0].compiled.total
    assert fields["compiled"]["device_kind"] == "cpu"


def test_the_child_compiles_what_trains(report):
    found = report.verified[0]
    tx = make_optimizer(OptimizerConfig(), 1000, MODEL.axes())
    mesh = hj.make_mesh(found.strategy, jax.devices()[:4])
    train = hj.make_train_step(MODEL, tx, found.strategy, mesh, clip_norm=1.0)
    here = hj.inspect(train, (8, 8))
    assert found.compiled.total == here.memory.total
    assert found.compiled.argument == here.memory.argument
    assert sum(found.sent.values()) == here.ledger.wire_bytes()
    assert found.compiled.hardware_flops == here.flops.hardware > 0
    conditional = {"+".join(total.axes) for total in here.ledger.by_axis() if total.conditional}
    assert found.at_most == conditional
    assert found.error == pytest.approx(found.predicted / here.memory.total - 1)


def test_what_does_not_fit_loses_its_rank():
    """With room for what is predicted of the only layout, but not for what it needs."""
    only = {"microbatches": 1, "zero": 1, "remat": "none"}
    report = hj.plan(MODEL, "cpu:1", **SIZES, **only, verify=1)
    (found,) = report.verified
    assert found.fits
    assert found.predicted < found.compiled.total
    room = (found.predicted + found.compiled.total) // 2
    small = hj.plan(MODEL, {"chip": "cpu", "devices": 1, "hbm_bytes": room}, **SIZES, **only)
    assert small.best == found.strategy
    compiled = small.verify(1)
    assert not compiled.fits
    assert compiled.plans[0].reason == compiled.verified[0].verdict
    assert compiled.verified[0].verdict.startswith("does not fit: needs")
    with pytest.raises(
        UserError, match=r"confirms none of the 1 best plans on cpu:1.*does not fit"
    ) as error:
        compiled.best  # noqa: B018
    assert "\n" not in str(error.value)


def test_a_killed_compiler_costs_its_plan_the_rank():
    plain = hj.plan(MODEL, "cpu:4", **SIZES)
    threading.Thread(target=kill_first_child, daemon=True).start()
    report = plain.verify(2)
    killed, other = report.verified
    assert "ended with SIGKILL" in killed.verdict
    assert "\n" not in killed.verdict
    assert report.best == other.strategy == plain.plans[1].strategy
    assert report.plans[0].reason == ""
    lost = next(plan for plan in report.plans if plan.strategy == killed.strategy)
    assert (lost.time, lost.reason) == (None, killed.verdict)


def kill_first_child() -> None:
    """Kills the first process of this one that compiles, as soon as it is there."""
    deadline = time.time() + 60
    while time.time() < deadline:
        for thread in Path("/proc/self/task").iterdir():
            for child in (thread / "children").read_text().split():
                if b"hybrid_jax.planning.aot_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
                    return
        time.sleep(0.02)


def test_none_is_confirmed(monkeypatch):
    monkeypatch.setattr(verify, "FURTHER", 2)
    report = hj.plan(MODEL, "cpu:8", **SIZES).verify(2, jobs=2, timeout_seconds=0.01)
    assert len(report.verified) == 4  # the first two, and two more
    assert report.verified[0].verdict == "was not compiled within 0.01 s"
    assert report.plans[0].time is not None  # the fifth, which is not confirmed
    assert not report.fits
    with pytest.raises(UserError, match=r"confirms none of the 4 best plans on cpu:8") as error:
        report.best  # noqa: B018
    assert "\n" not in str(error.value)
    assert "confirms none" in str(report)


def test_a_strategy_that_does_not_divide_fails_in_one_line():
    compiled = compile_apart(job("cpu:4", stage=4, microbatches=3))
    assert compiled == Compiled(failure=compiled.failure)
    assert "microbatches" in compiled.failure
    assert "\n" not in compiled.failure


def test_a_child_that_cannot_start_says_so():
    compiled = compile_apart(job("cpu:4", data=3))
    assert "need 3 devices" in compiled.failure


def test_what_xla_says_of_too_large_programs():
    used = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
    used += "hbm. Used 18.50G of 15.75G hbm. Exceeded hbm capacity by 2.75G."
    assert needed_bytes(used) == 18.5 * 2**30
    early = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    early += "temporaries (44.50G) exceeds available HBM (15.75G)."
    assert needed_bytes(early) == 44.5 * 2**30
    assert needed_bytes("INTERNAL: Used up my patience") == 0


@needs_libtpu
@pytest.mark.slow
def test_compiles_for_absent_tpus():
    report = hj.plan(KERNEL, "v5e:2x4", global_batch=16, seq_len=256, verify=1, data=4)
    found = report.verified[0]
    assert found.verdict == "fits"
    assert found.compiled.device_kind == "TPU v5 lite"
    assert found.sent["data"] > 0
    too_large = decoder(vocab_size=2**21, embed_dim=8192, num_heads=64, max_length=256).config
    compiled = compile_apart(job("v5e:2x4", too_large, 64, 256, data=8))
    assert "RESOURCE_EXHAUSTED" in compiled.failure
    assert compiled.total > Cluster.of("v5e:2x4").chip.hbm_bytes


EVERY_TORUS = """
import itertools
from hybrid_jax.errors import UserError
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.toolchains import absent_devices

SIZES = {2: (1, 2, 4, 8, 12, 16), 3: (1, 2, 4, 8, 12)}
tori = 0
for chip, dims in {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}.items():
    for shape in itertools.product(SIZES[dims], repeat=dims):
        try:
            found = [Cluster.of(f"{chip}:{'x'.join(map(str, (*shape, n)))}") for n in (1, 2)]
        except UserError:
            continue
        for cluster in found if found[0].num_devices <= 256 else ():
            devices = absent_devices(cluster)
            name = cluster.describe()
            assert len({d.id for d in devices}) == cluster.num_devices, name
            assert len({d.process_index for d in devices}) == cluster.hosts, name
            assert Cluster.of(devices).describe() == name
            tori += 1
print(tori)
"""


@needs_libtpu
def test_libtpu_knows_every_torus_that_we_do():
    """And has one device for each chip, on as many hosts and slices as there are."""
    result = in_child(EVERY_TORUS, "v5p:4x4x4")
    assert result.returncode == 0, result.stderr[-500:]
    assert int(result.stdout) > 100


REFUSED = """
from hybrid_jax.errors import UserError
from hybrid_jax.hardware.chips import CHIPS
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.planning.toolchains import absent_devices

for shape in ((3, 2, 1), (4, 4), (4, 4, 4, 4)):
    try:
        absent_devices(Cluster(CHIPS["v5p"], shape))
    except UserError as error:
        print(error)
"""


@needs_libtpu
def test_what_libtpu_refuses_is_told_on_one_line():
    result = in_child(REFUSED, "v5p:4x4x4")
    assert result.returncode == 0, result.stderr[-500:]
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    pattern = r"libtpu 0\.0\.\S+ refuses 'v5p:\d(x\d)+': INVALID_ARGUMENT: .*Cluster\.of"
    assert all(re.match(pattern, line) for line in lines), lines


def in_child(program: str, devices: str) -> subprocess.CompletedProcess[str]:
    """Runs `program` where absent `devices` can be compiled for."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment(Cluster.of(devices), os.environ),
        capture_output=True,
        text=True,
        check=False,
    )


@needs_cuda
@pytest.mark.parametrize("devices", ["h200:8", "a100:16", "b200:8"])
def test_compiles_for_absent_gpus(devices):
    """With cuDNN's attention, as on the devices: without it one layer's scores are that large."""
    data = Cluster.of(devices).num_devices // 2
    compiled = compile_apart(job(devices, KERNEL, 8 * data, 2048, data=data, model=2))
    assert compiled.failure == ""
    assert compiled.device_kind.startswith("NVIDIA")
    scores = 4 * 8 * (KERNEL.num_heads // 2) * 2048**2
    assert compiled.argument < compiled.total < scores
    assert any(total["axes"] == ["data"] for total in compiled.collectives)


PLUGINS = ["jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"]


@pytest.mark.parametrize(
    ("devices", "modules", "message"),
    [
        ("v5e:2x4", ["libtpu"], r"needs libtpu 0\.0.*absent: pip install 'hybrid-jax\[aot\]'"),
        ("h200:8", PLUGINS, r"pip install --no-deps jax-cuda13-plugin==\d.*aot-cuda"),
    ],
)
def test_a_compiler_that_is_not_installed(monkeypatch, devices, modules, message):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not on the path
    with pytest.raises(UserError, match=message) as error:
        hj.plan(MODEL, devices, **SIZES, verify=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("devices", "package", "module", "message"),
    [
        ("v5e:2x4", "libtpu", "libtpu", r"libtpu 0\.0\.1 is installed, but jax .* 'libtpu==0\.0"),
        (
            "h200:8",
            "jax_cuda13_plugin",
            "jax_plugins/xla_cuda13",
            r"jax-cuda13-plugin 0\.0\.1 is installed, but jaxlib is .*pip install --no-deps",
        ),
    ],
)
def test_a_compiler_of_another_version(monkeypatch, tmp_path, devices, package, module, message):
    (tmp_path / module).mkdir(parents=True)
    (tmp_path / module / "__init__.py").write_text("")
    (tmp_path / f"{package}-0.0.1.dist-info").mkdir()
    metadata = tmp_path / f"{package}-0.0.1.dist-info" / "METADATA"
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        check_compiler(Cluster.of(devices))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verify": 0}, "verify=0 must be a whole number, at least 1"),
        ({"verify": "all"}, "verify='all' must be a whole number"),
        ({"devices": "cpu:128", "global_batch": 128}, "at most 64 virtual CPU devices, not 128"),
        (
            {"devices": {"chip": "h100", "devices": 8, "name": "h20"}},
            "no compiler knows the chip 'h20'",
        ),
    ],
)
def test_mistakes(changes, message):
    given = {"devices": "cpu:4", **SIZES, "verify": 1}
    with pytest.raises(UserError, match=message) as error:
        hj.plan(MODEL, **{**given, **changes})
    assert "\n" not in str(error.value)
