"""The bench: its baseline does the same work as the train step, its report says all of it."""

import ast
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from tiny import decoder, plain_batch, ragged_batch

from hybrid_jax.benchmark import baseline
from hybrid_jax.benchmark.baseline import make_plain_step
from hybrid_jax.benchmark.compare import bench, bench_from_config
from hybrid_jax.benchmark.plain_process import PlainProcess
from hybrid_jax.benchmark.plain_program import plain_program
from hybrid_jax.benchmark.report import BenchReport
from hybrid_jax.benchmark.strategies import read_strategies
from hybrid_jax.config.load import load_config
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import RunError, UserError
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.timing import Times
from hybrid_jax.train.step import make_train_step

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    ("strategy", "clip_norm"),
    [
        (Strategy(precision="f32"), None),
        (Strategy(precision="f32", microbatches=4, remat="dots"), 0.1),
        (Strategy(precision="f32", stage=2, data=2, microbatches=2, remat="stage"), None),
        (Strategy(precision="f32", model=2, remat="none"), 0.1),
    ],
    ids=lambda value: value.describe() if isinstance(value, Strategy) else f"clip={value}",
)
def test_the_baseline_does_what_the_train_step_does(strategy, clip_norm):
    """Losses, gradient norms and parameters agree, with dropout, packing and ragged weights."""
    model, tx = decoder("gpt2", dropout=0.1), optax.sgd(0.5, momentum=0.9)
    batch, key = ragged_batch(), jax.random.key(0)
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    train = make_train_step(model, tx, strategy, mesh, clip_norm=clip_norm)
    init, step = make_plain_step(
        model,
        tx,
        microbatches=strategy.microbatches,
        remat=strategy.remat,
        precision=strategy.precision,
        clip_norm=clip_norm,
    )
    state, plain_state = train.init(key), init(key)
    for _ in range(3):
        state, metrics = train.step(state, batch)
        plain_state, plain_metrics = step(plain_state, batch)
        for name in ("loss", "weight", "grad_norm"):
            np.testing.assert_allclose(plain_metrics[name], metrics[name], rtol=1e-5)
    params, plain_params = jax.device_get((train.canonical_params(state), plain_state[1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, plain_params
    )


@pytest.mark.parametrize(("precision", "rtol"), [("bf16", 1e-2), ("fp16", 1e-3)])
def test_a_half_baseline_agrees_to_its_precision(precision, rtol):
    model, batch, tx = decoder(), plain_batch(), optax.sgd(0.1)
    found = []
    for name in ("f32", precision):
        init, step = make_plain_step(model, tx, precision=name, microbatches=2)
        _, metrics = step(init(jax.random.key(0)), {**batch, "weights": np.ones((8, 8), "f")})
        found.append([float(metrics[name]) for name in ("loss", "grad_norm")])
    assert found[0] != found[1]
    np.testing.assert_allclose(found[1], found[0], rtol=rtol)


def test_the_baseline_knows_nothing_of_the_executor():
    modules = {
        node.module
        for node in ast.walk(ast.parse(inspect.getsource(baseline)))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert {m for m in modules if m.startswith("hybrid_jax")} == {
        "hybrid_jax.models.context",
        "hybrid_jax.models.contract",
    }


def plain_process(tx):
    batch = {**plain_batch(), "weights": np.ones((8, 8), np.float32)}
    return PlainProcess(decoder(), tx, None, batch), batch


def telling(path):
    """An optimizer that writes down where its state is made."""
    tx = optax.sgd(0.5)

    def init(params):
        threads = [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
        facts = {
            "process": os.getpid(),
            "devices": jax.device_count(),
            "threads": sum("XLAEigen" in name for name in threads),
            "forced": [name for name in ("NPROC", "XLA_FLAGS") if name in os.environ],
        }
        path.write_text(json.dumps(facts))
        return tx.init(params)

    return optax.GradientTransformation(init, tx.update)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_plain_jax_has_a_process_of_its_own_and_the_defaults_of_jax(tmp_path):
    tx, strategy = telling(tmp_path / "facts.json"), Strategy(precision="f32")
    process, batch = plain_process(tx)
    with process:
        remote = process.compile(strategy)
        facts = json.loads((tmp_path / "facts.json").read_text())
        steps = [remote.timed_step() for _ in range(3)]
    assert facts.pop("process") != os.getpid()
    assert facts == {"devices": 1, "threads": len(os.sched_getaffinity(0)), "forced": []}
    here = plain_program(decoder(), tx, strategy, None, batch)
    losses = [here.timed_step().loss for _ in range(3)]
    np.testing.assert_allclose([step.loss for step in steps], losses, rtol=1e-5)
    assert all(step.wall_seconds > 0 < step.cpu_seconds for step in steps)
    assert remote.compile_seconds > 0 < remote.memory_bytes


def failing(params):
    raise ValueError("no state for you,\nsays this optimizer")


def test_a_failure_in_the_process_of_plain_jax_is_one_line():
    process, _ = plain_process(optax.GradientTransformation(failing, optax.sgd(0.1).update))
    with process, pytest.raises(RunError) as caught:
        process.compile(Strategy())
    assert str(caught.value) == ("the process of plain JAX failed: ValueError: no state for you,")


def test_the_process_of_plain_jax_is_killed():
    def suicide(params):
        os.kill(os.getpid(), signal.SIGKILL)

    process, _ = plain_process(optax.GradientTransformation(suicide, optax.sgd(0.1).update))
    with process, pytest.raises(RunError, match=r"ended early \(killed by SIGKILL\): ") as caught:
        process.compile(Strategy())
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_cannot_be_sent_is_refused():
    lock = threading.Lock()
    tx = optax.GradientTransformation(lambda params: lock, optax.sgd(0.1).update)
    with pytest.raises(UserError, match="an optimizer that can be pickled"):
        plain_process(tx)


ORPHAN = """
import os, sys, time
import optax
told = sys.argv[1]
from test_bench import plain_process
from hybrid_jax.config.strategy import Strategy

def init(params):  # in the process of plain JAX; as busy as if it compiled
    with open(told, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

process, _ = plain_process(optax.GradientTransformation(init, optax.sgd(0.1).update))
process.compile(Strategy())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_the_process_of_plain_jax_dies_with_its_parent(tmp_path):
    told = tmp_path / "process"
    path = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent)))
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(told)], env={**os.environ, "PYTHONPATH": path}
    )
    try:
        wait_for(lambda: told.exists() and told.read_text())
        child = Path("/proc") / told.read_text()
        assert child.exists()
        parent.kill()
        wait_for(lambda: not child.exists() or "State:\tZ" in (child / "status").read_text())
    finally:
        parent.kill()
        parent.wait()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


STRATEGIES = (
    Strategy(precision="f32"),
    Strategy(precision="f32", microbatches=4),
    Strategy(precision="f32", stage=2, model=2, microbatches=4, remat="dots"),
)


@pytest.fixture(scope="module")
def report():
    return bench(decoder(), STRATEGIES, (8, 8), steps=3)


def test_rows(report):
    """Each layout once, and each plain step that one of them is compared with once."""
    plain = [row.strategy for row in report.rows if row.program == "plain JAX"]
    assert plain == [
        Strategy(precision="f32", microbatches=count, remat=remat)
        for remat, count in (("layer", 1), ("layer", 4), ("dots", 1), ("dots", 4))
    ]
    hybrid = [row.strategy for row in report.rows if row.program == "hybrid_jax"]
    assert hybrid == list(STRATEGIES)
    assert (report.platform, report.num_devices, report.steps) == ("cpu", 8, 3)


def test_numbers_are_real(report):
    for row in report.rows:
        ratios = (row.versus_plain, row.versus_accumulation)
        numbers = [row.step_seconds, row.cpu_seconds, row.compile_seconds, row.memory_bytes]
        numbers += [part for ratio in ratios for part in (ratio.wall, ratio.cpu)]
        assert np.all(np.isfinite(numbers)) and min(numbers) > 0
        assert (row.put_seconds is None) == (row.program == "plain JAX")
        assert row.put_seconds is None or 0 < row.put_seconds < 1
        np.testing.assert_allclose(row.tokens_per_second * row.step_seconds, 8 * 8, rtol=1e-6)
        np.testing.assert_allclose(row.loss, report.rows[0].loss, rtol=1e-5)
    first, second = report.rows[:2]
    assert (first.versus_plain.wall, first.versus_accumulation.cpu) == (1, 1)
    assert second.versus_accumulation.wall == 1 != second.versus_plain.wall


def test_ratios_are_taken_within_a_round():
    """A machine that slows down tenfold leaves them as they are."""
    seconds = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    assert Times(seconds, 2 * seconds, (0, 0)).ratio(1, 0) == (2, 2)


def test_json_round_trip(report):
    assert BenchReport.from_json(report.to_json()) == report


def test_table(report):
    """Every row is there with its numbers; long layouts go on in the next line."""
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 130
    for row in report.rows:
        cells = (f"{row.program}: ", f"{row.step_seconds:.4g}", f"{row.cpu_seconds:.4g}")
        cells += (f"{row.compile_seconds:.2f}", str(row.versus_plain), str(row.versus_accumulation))
        assert sum(all(cell in line for cell in cells) for line in lines) == 1, cells


def test_bench_from_config_takes_the_run_as_it_is():
    overrides = ["model.num_layers=1", "model.embed_dim=16", "model.vocab_size=256"]
    overrides += ["model.mlp_dim=32", "data.seq_len=8", "strategy.microbatches=1"]
    overrides += ["strategy.stage=1", "strategy.data=8", "strategy.model=1"]
    config, lines = load_config(CONFIGS / "bench.yaml", overrides), []
    report = bench_from_config(config, steps=1, progress=lines.append)
    assert report.model.config == asdict(config.model)
    assert (report.model.num_layers, report.batch_shape) == (1, (16, 8))
    assert [row.strategy for row in report.rows] == [Strategy(precision="f32"), config.strategy]
    assert [line.split()[0] for line in lines] == ["compiling", "compiling", "timing"]


def test_a_strategy_that_does_not_fit_the_run_is_refused():
    config = load_config(CONFIGS / "bench.yaml")
    with pytest.raises(UserError, match=r"model.num_layers=8 leaves stages without a layer"):
        bench_from_config(config, [replace(config.strategy, stage=9)])


@pytest.mark.parametrize(
    ("strategies", "batch_shape", "steps", "message"),
    [
        ([], (8, 8), 1, "at least one strategy"),
        ([Strategy()], (8, 8), 0, "steps=0 must be"),
        ([Strategy(data=16)], (16, 8), 1, "data=16 need 16 devices, but there are 8"),
        ([Strategy(microbatches=3)], (8, 8), 1, "use a multiple of 3"),
    ],
)
def test_bench_refuses(strategies, batch_shape, steps, message):
    with pytest.raises(UserError, match=message):
        bench(decoder(), strategies, batch_shape, steps=steps)


@pytest.fixture
def strategies_of(tmp_path):
    def read(text, base=None):
        path = tmp_path / "strategies.yaml"
        path.write_text(text)
        return read_strategies(path, base)

    return read


def test_an_entry_replaces_the_fields_that_it_names(strategies_of):
    base = Strategy(stage=2, data=2, precision="f32")
    text = (
        "- {data: 1, remat: none, skip_bubbles: true, rules: null}\n- {}\n- rules: [[mlp, model]]"
    )
    assert strategies_of(text, base) == [
        Strategy(stage=2, remat="none", precision="f32", skip_bubbles=True),
        base,
        replace(base, rules=(("mlp", "model"),)),
    ]
    assert strategies_of("[{stage: 2}]") == [Strategy(stage=2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- stag: 4", "entry 1: unknown field 'strategy.stag'.* Did you mean 'stage'"),
        ("- {}\n- stage", "entry 2: a strategy must be a mapping of its fields, not 'stage'"),
        ("- stage: four", "entry 1: strategy.stage='four' must be a whole number"),
        ("- stage:", "entry 1: strategy.stage=None must be a whole number"),
        ("- schedule: 1f1", "must be one of .* Did you mean '1f1b'"),
        ("- zero: 2", "strategy.zero=2 must be one of 0, 1, 3"),
        ("- chunks: 2", "needs schedule='interleaved'"),
        ("- {stage: 1, stage: 2}", "line 1: 'stage' stands in line 1 already"),
        ("- rules: [", r"strategies.yaml' is not YAML: line 1"),
        (
            "stage: 4",
            r"must be a list of .* such as '- \{stage: 4, microbatches: 8\}', not \{'stage'",
        ),
        ("# nothing\n", "must be a list of at least one strategy, .*, not None"),
        ("[]", "must be a list of at least one strategy"),
    ],
)
def test_read_strategies_refuses(strategies_of, text, message):
    with pytest.raises(UserError, match=message) as caught:
        strategies_of(text)
    assert str(caught.value).startswith("strategies file '")
    assert "\n" not in str(caught.value)


def test_a_strategies_file_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "strategies.yaml").touch()
    with pytest.raises(UserError, match=r"no strategies file .* Did you mean .*strategies.yaml'"):
        read_strategies(tmp_path / "strategy.yaml")


def test_the_strategies_of_the_readme():
    base = load_config(CONFIGS / "bench.yaml").strategy
    found = read_strategies(CONFIGS / "bench_strategies.yaml", base)
    assert [strategy.describe() for strategy in found] == [
        "precision=f32",
        "microbatches=8 precision=f32",
        "stage=4 microbatches=8 precision=f32",
        "stage=2 data=2 model=2 microbatches=8 precision=f32",
    ]
