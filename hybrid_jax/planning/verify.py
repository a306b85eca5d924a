"""Compiles the best plans with the real compiler, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from hybrid_jax.config.checks import check_int
from hybrid_jax.planning.aot_worker import Compiled, Job
from hybrid_jax.planning.reasons import reason
from hybrid_jax.planning.search import Plan, Problem
from hybrid_jax.planning.toolchains import check_compiler, environment
from hybrid_jax.planning.verified import Verified

FURTHER = 5
"""Plans that are tried beyond the first few, where none of those fits."""

TIMEOUT_SECONDS = 3600.0
"""Of one compilation: a 70B model for 1,024 devices takes minutes on a slow core."""

_ROOT = str(Path(__file__).parents[2])  # where `import hybrid_jax` finds it


def verify(
    problem: Problem,
    plans: Sequence[Plan],
    top: int,
    *,
    jobs: int = 1,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> tuple[Verified, ...]:
    """Compiles the first `top` plans that are predicted to fit; see `PlanReport.verify`.

    Raises:
      UserError: the compiler is not installed, or `top` or `jobs` is no positive number.
    """
    check_int("verify", top, at_least=1)
    check_int("jobs", jobs, at_least=1)
    candidates = [plan for plan in plans if plan.time is not None]
    if not candidates:
        return ()
    check_compiler(problem.cluster)
    found: list[Verified] = []
    with _Progress(min(top, len(candidates))) as progress:

        def compile_one(plan: Plan) -> Verified:
            progress.show(plan, len(found))
            compiled = compile_apart(_job(problem, plan), timeout_seconds)
            found.append(_beside(problem, plan, compiled))
            return found[-1]

        results = _each(compile_one, candidates[:top], jobs)
        for plan in candidates[top : top + FURTHER]:
            if any(result.fits for result in results):
                break
            results.append(compile_one(plan))
    return tuple(results)


def _each(
    compile_one: Callable[[Plan], Verified], plans: Sequence[Plan], jobs: int
) -> list[Verified]:
    if jobs == 1:  # in this thread, where Ctrl-C ends the child too
        return [compile_one(plan) for plan in plans]
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(compile_one, plan) for plan in plans]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def rerank(
    problem: Problem, plans: Sequence[Plan], verified: Sequence[Verified]
) -> tuple[Plan, ...]:
    """Returns the plans with those behind the others that the compiler did not confirm."""
    lost = {found.strategy: found.verdict for found in verified if not found.fits}
    fitting = [plan for plan in plans if plan.time and plan.strategy not in lost]
    refused = [
        replace(plan, time=None, reason=lost[plan.strategy])
        for plan in plans
        if plan.time and plan.strategy in lost
    ]
    ranked = [replace(plan, reason=reason(problem, plan, fitting[0])) for plan in fitting]
    return (*ranked, *refused, *(plan for plan in plans if plan.time is None))


def compile_apart(job: Job, timeout_seconds: float = TIMEOUT_SECONDS) -> Compiled:
    """Compiles in a child process; whatever becomes of that, the result says it."""
    variables = environment(job.cluster, os.environ)
    paths = [_ROOT, variables.get("PYTHONPATH")]
    variables["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    try:
        child = subprocess.run(
            [sys.executable, "-m", "hybrid_jax.planning.aot_worker"],
            input=json.dumps(asdict(job)),
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Compiled(failure=f"was not compiled within {timeout_seconds:g} s")
    if child.returncode:
        return Compiled(failure=_ending(child.returncode, child.stderr))
    fields = json.loads(child.stdout.splitlines()[-1])
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Compiled(**fields | lists)


def _ending(status: int, stderr: str) -> str:
    """Why a child ended without a result, from the line with which XLA or Python gave up."""
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r"F\d{4} |.*Check failed", line)]
    last = (fatal or lines or [""])[0 if fatal else -1]
    # "F1121 15:45:05.863550  933 file.cc:968] Check failed: ..." says when, which says nothing.
    last = re.sub(r"^F\d{4} \S+\s+\d+ ", "", last)[:200]
    if -status == signal.SIGKILL:
        last = "killed, perhaps for want of memory on this machine"
    return f"the compiler ended with {name}: {last}"


def _job(problem: Problem, plan: Plan) -> Job:
    cluster = problem.cluster
    return Job(
        model=asdict(problem.config),
        strategy=asdict(plan.strategy),
        chip=cluster.chip.name,
        shape=cluster.shape,
        slices=cluster.slices,
        global_batch=problem.global_batch,
        seq_len=problem.seq_len,
        optimizer=problem.optimizer,
    )


def _beside(problem: Problem, plan: Plan, compiled: Compiled) -> Verified:
    assert plan.time is not None
    return Verified(
        strategy=plan.strategy,
        memory_limit_bytes=problem.memory_limit_bytes,
        predicted=plan.memory.total,
        predicted_sent=dict(plan.time.sent_bytes),
        predicted_flops=plan.time.hardware_flops,
        compiled=compiled,
    )


class _Progress:
    """A line on the terminal while the compiler works; nothing anywhere else."""

    def __init__(self, count: int):
        console = Console(stderr=True)
        self.count = count
        self.status = console.status("compiling") if console.is_terminal else None

    def __enter__(self) -> _Progress:
        if self.status is not None:
            self.status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.status is not None:
            self.status.stop()

    def show(self, plan: Plan, finished: int) -> None:
        if self.status is not None:
            total = max(self.count, finished + 1)
            self.status.update(f"compiling {finished + 1} of {total}: {plan.strategy.describe()}")
