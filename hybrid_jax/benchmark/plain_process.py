"""Plain JAX in a process of its own, as it runs where nobody forces devices on it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import jax
import numpy as np
import optax

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import RunError, UserError
from hybrid_jax.models.contract import Model
from hybrid_jax.runtime.cpu import default_environment
from hybrid_jax.timing import StepTime

_CACHE_OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@dataclass(frozen=True)
class RemoteProgram:
    """A plain step that is compiled in the other process, and takes its own time there.

    Attributes:
      process: where it is.
      index: its number there.
      compile_seconds: wall time of tracing, lowering and compiling.
      memory_bytes: as the compiler planned it.
    """

    process: PlainProcess
    index: int
    compile_seconds: float
    memory_bytes: int

    def timed_step(self) -> StepTime:
        """Makes one update there and returns its time, on that process's own clocks."""
        return StepTime(*self.process.ask("step", self.index))


class PlainProcess(contextlib.AbstractContextManager):
    """A process with one CPU device and JAX's defaults, which compiles and times plain steps.

    It works only when it is asked to and ends with this process, also when that one is killed.
    Use it as a context manager.

    Raises:
      UserError: the optimizer cannot be sent to another process.
      RunError: (from any call) the process failed or was killed.
    """

    def __init__(
        self,
        model: Model,
        tx: optax.GradientTransformation,
        clip_norm: float | None,
        batch: dict[str, np.ndarray],
    ):
        try:
            job = cloudpickle.dumps((model, tx, clip_norm, batch))
        except Exception as error:  # whatever an optimizer's closure holds may raise anything
            raise UserError(
                f"bench sends the model and the optimizer to a process of plain JAX, but "
                f"{type(error).__name__}: {error}. Use an optimizer that can be pickled."
            ) from None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "hybrid_jax.benchmark.plain_worker"],
            env={**default_environment(dict(os.environ)), **_inherited()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._send(job)

    def __exit__(self, *exception: object) -> None:
        self._child.kill()
        self._child.communicate()
        self._log.close()

    def compile(self, strategy: Strategy) -> RemoteProgram:
        """Compiles the plain step of `strategy` there."""
        return RemoteProgram(self, *self.ask("compile", strategy))

    def ask(self, verb: str, argument: Any) -> tuple:
        """Returns the process's answer to one request; see `plain_worker`."""
        self._send((verb, argument))
        try:
            assert self._child.stdout is not None
            failed, answer = pickle.load(self._child.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._failure() from None
        if failed:
            raise RunError(f"the process of plain JAX failed: {answer}")
        return answer

    def _send(self, message: object) -> None:
        assert self._child.stdin is not None
        try:
            pickle.dump(message, self._child.stdin)
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _failure(self) -> RunError:
        status = self._child.wait()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
        return RunError(f"the process of plain JAX ended early ({how}): {last}")


def _inherited() -> dict[str, str]:
    """What the process has in common with this one: modules and the compilation cache."""
    path = os.pathsep.join(str(Path(folder).resolve()) for folder in sys.path)
    options = {name: getattr(jax.config, name) for name in _CACHE_OPTIONS}
    cache = {name.upper(): str(value) for name, value in options.items() if value is not None}
    return {"PYTHONPATH": path, **cache}
