"""`bench`: how fast the layouts of one model are, beside the step one would write by hand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import jax
import numpy as np
import optax

from hybrid_jax.analysis.memory import memory
from hybrid_jax.benchmark.plain_process import PlainProcess, RemoteProgram
from hybrid_jax.benchmark.plain_program import plain_program
from hybrid_jax.benchmark.report import BenchReport, BenchRow, ModelSummary, ProgramName, Ratio
from hybrid_jax.config.checks import check_int
from hybrid_jax.config.run import RunConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.models.contract import Model
from hybrid_jax.models.decoder import Decoder
from hybrid_jax.runtime.cpu import force_cpu_devices
from hybrid_jax.sharding.mesh import make_mesh
from hybrid_jax.timing import Program, Times, compile_program, measure
from hybrid_jax.train.optimizer import make_optimizer
from hybrid_jax.train.step import TrainStep, make_train_step

Batch = dict[str, np.ndarray]
Progress = Callable[[str], object]


def bench(
    model: Model,
    strategies: Iterable[Strategy],
    batch_shape: tuple[int, ...],
    *,
    steps: int = 10,
    tx: optax.GradientTransformation | None = None,
    clip_norm: float | None = None,
    progress: Progress = lambda line: None,
) -> BenchReport:
    """Times the train step of `model` under each strategy, beside plain JAX on one device.

    The plain steps have the strategies' remat and precision; one runs the whole batch at once,
    one accumulates gradients over as many microbatches. All programs run interleaved, one step of
    each in turn, so that the drift of a shared machine cancels in the ratios (see `measure`);
    therefore the states of all of them are held at once. Times are of the compiled step with its
    batch on the devices, state donated, until all its results are there.

    On CPU plain JAX runs in a process of its own, with one device, JAX's default thread pool and
    none of the flags that several virtual devices need. On GPU and TPU, which belong to one process
    at a time, it runs in this one, on the first device.

    >>> import hybrid_jax as hj
    >>> model = hj.models.Decoder(hj.models.preset("nano", num_layers=1, embed_dim=16))
    >>> report = bench(model, [hj.Strategy()], (2, 8), steps=1)
    >>> [row.program for row in report.rows]
    ['plain JAX', 'hybrid_jax']

    Args:
      model: what to train.
      strategies: layouts; those that need fewer devices use the first of them.
      batch_shape: global (B, T) of the random tokens; or (B,), as of `inspect`.
      steps: timed steps of each program, after one that is not.
      tx: the optimizer; `optax.adamw(3e-4)` by default.
      clip_norm: as for `make_train_step`.
      progress: called with a line of text before each part of the work.

    Raises:
      UserError: no strategy, or one that fits neither the devices, the model nor the batch; an
        optimizer that cannot be pickled.
      RunError: the process of plain JAX failed.
    """
    check_int("steps", steps, at_least=1)
    strategies = tuple(dict.fromkeys(strategies))
    if not strategies:
        raise UserError("bench needs at least one strategy, such as Strategy(), but got none.")
    tx = optax.adamw(3e-4) if tx is None else tx
    batch = model.batch_entries().random(batch_shape)
    trains = [_make_train(model, tx, strategy, clip_norm) for strategy in strategies]
    batches = [train.put(batch) for train in trains]  # refuses what does not divide

    with contextlib.ExitStack() as stack:
        plain = _plain_compiler(stack, model, tx, clip_norm, batch)
        programs: dict[tuple[ProgramName, Strategy], Program | RemoteProgram] = {}
        for strategy in _baselines(strategies):
            progress(f"compiling plain JAX: {strategy.describe()}")
            programs["plain JAX", strategy] = plain(strategy)
        for train, placed in zip(trains, batches, strict=True):
            progress(f"compiling hybrid_jax: {train.strategy.describe()}")
            programs["hybrid_jax", train.strategy] = _hybrid_program(train, placed)
        progress(f"timing {len(programs)} programs, {steps} steps of each")
        times = measure(list(programs.values()), steps)
    puts = {train.strategy: _put_seconds(train, batch, steps) for train in trains}
    device = jax.devices()[0]
    return BenchReport(
        jax_version=jax.__version__,
        platform=device.platform,
        device_kind=device.device_kind,
        num_devices=jax.device_count(),
        model=ModelSummary.of(model),
        batch_shape=batch_shape,
        steps=steps,
        rows=_rows(programs, times, puts, batch_shape),
    )


def bench_from_config(
    config: RunConfig,
    strategies: Iterable[Strategy] = (),
    steps: int = 10,
    progress: Progress = lambda line: None,
) -> BenchReport:
    """Returns `bench` of a run's model, optimizer, clipping and batch shape, on random tokens.

    Where the run asks for virtual CPU devices, as many are started as the largest strategy needs.

    Args:
      config: the run; its text is not read.
      strategies: what to measure; the run's own strategy by default.

    Raises:
      UserError: a strategy that does not fit the run, before anything is compiled.
    """
    strategies = tuple(strategies) or (config.strategy,)
    for strategy in strategies:
        replace(config, strategy=strategy, cpu_devices=None)  # checks them against each other
    if config.cpu_devices is not None:
        needed = (strategy.num_devices for strategy in strategies)
        force_cpu_devices(max(config.cpu_devices, *needed))
    model = Decoder(config.model)
    return bench(
        model,
        strategies,
        (config.data.global_batch, config.data.seq_len),
        steps=steps,
        tx=make_optimizer(config.optimizer, config.train.steps, model.axes()),
        clip_norm=config.optimizer.clip_norm,
        progress=progress,
    )


def _make_train(
    model: Model, tx: optax.GradientTransformation, strategy: Strategy, clip_norm: float | None
) -> TrainStep:
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    return make_train_step(model, tx, strategy, mesh, clip_norm=clip_norm)


def _plain(strategy: Strategy, microbatches: int) -> Strategy:
    """What a plain step shares with `strategy`, on one device."""
    return Strategy(microbatches=microbatches, remat=strategy.remat, precision=strategy.precision)


def _baselines(strategies: Sequence[Strategy]) -> list[Strategy]:
    """The plain steps to measure, without repetition: whole batch, and accumulating."""
    return list(
        dict.fromkeys(_plain(s, count) for s in strategies for count in (1, s.microbatches))
    )


def _plain_compiler(
    stack: contextlib.ExitStack,
    model: Model,
    tx: optax.GradientTransformation,
    clip_norm: float | None,
    batch: Batch,
) -> Callable[[Strategy], Program | RemoteProgram]:
    """Strategy -> its plain step: in a process of its own where it can have one."""
    if jax.default_backend() == "cpu":
        return stack.enter_context(PlainProcess(model, tx, clip_norm, batch)).compile
    return lambda strategy: plain_program(model, tx, strategy, clip_norm, batch)


def _put_seconds(train: TrainStep, batch: Batch, times: int) -> float:
    """Median host time of checking and placing a batch; the copy itself is not waited for."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        placed = train.put(batch)
        seconds.append(time.perf_counter() - start)
        jax.block_until_ready(placed)
    return float(np.median(seconds))


def _hybrid_program(train: TrainStep, batch: dict[str, jax.Array]) -> Program:
    shapes = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in batch.items()
    }
    return compile_program(lambda: train.lower(shapes), train.init(jax.random.key(0)), batch)


def _rows(
    programs: dict[tuple[ProgramName, Strategy], Program | RemoteProgram],
    times: Times,
    puts: dict[Strategy, float],
    batch_shape: tuple[int, ...],
) -> tuple[BenchRow, ...]:
    names = list(programs)
    wall, cpu = np.median(times.wall_seconds, axis=0), np.median(times.cpu_seconds, axis=0)
    rows = []
    for index, (name, strategy) in enumerate(names):

        def versus(microbatches: int, index: int = index, strategy: Strategy = strategy) -> Ratio:
            baseline = names.index(("plain JAX", _plain(strategy, microbatches)))
            return Ratio(*times.ratio(index, baseline))

        program = programs[name, strategy]
        rows.append(
            BenchRow(
                program=name,
                strategy=strategy,
                step_seconds=float(wall[index]),
                cpu_seconds=float(cpu[index]),
                tokens_per_second=float(np.prod(batch_shape) / wall[index]),
                compile_seconds=program.compile_seconds,
                memory_bytes=_memory_bytes(program),
                put_seconds=puts[strategy] if name == "hybrid_jax" else None,
                loss=times.losses[index],
                versus_plain=versus(1),
                versus_accumulation=versus(strategy.microbatches),
            )
        )
    return tuple(rows)


def _memory_bytes(program: Program | RemoteProgram) -> int:
    if isinstance(program, RemoteProgram):
        return program.memory_bytes
    return memory(program.compiled).total
