"""The training loop: steps, hooks, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from hybrid_jax.runtime.agree import Agreement
from hybrid_jax.runtime.stop import StopSignal
from hybrid_jax.train.state import TrainState


class Stepper(Protocol):
    """What the loop needs of a train step; `TrainStep` is one."""

    def step(
        self, state: TrainState, batch: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, jax.Array]]: ...


@runtime_checkable
class CheckingStepper(Protocol):
    """What a train step has too, if it refuses states that are not its own."""

    def check_state(self, state: TrainState) -> None: ...


class BatchSource(Protocol):
    """Global host batches as a function of the number of updates made before."""

    def batch(self, step: int) -> Mapping[str, np.ndarray]: ...


class Hook(Protocol):
    """Something that looks at a run between its steps."""

    def on_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Called when update number `step` (from 1) has been dispatched, not necessarily done.

        `state` is the state after it and lives until the hook returns: the next update is given
        its memory. `metrics` are device scalars; reading them waits for the update.
        """

    def on_end(self, state: TrainState) -> None:
        """Called once, when the run has ended or has been stopped."""


@runtime_checkable
class StartHook(Protocol):
    """What a hook has too, if it wants to see the run before its first step."""

    def on_start(self, state: TrainState) -> None:
        """Called once, before the first update; `state.step` updates have been made before."""


@runtime_checkable
class ErrorHook(Protocol):
    """What a hook has too, if it wants to see a run that an exception ends."""

    def on_error(self, state: TrainState, error: Exception) -> None:
        """Called once with the last whole state; `on_end` is not called then."""


class Trainer:
    """Runs a train step over batches until a number of updates has been made.

    Ctrl-C and SIGTERM let the step in progress finish and end the run as if it had been shorter;
    a second Ctrl-C raises `KeyboardInterrupt`. However the run ends, `state` is the last whole one,
    and `fit(trainer.state)` resumes from it. With several processes it is enough that one of them
    gets the signal: all make the same last step, at most one more than it would have been alone.

    Args:
      train: makes one update, such as `make_train_step(…)`.
      batches: gives the batch of each update, such as `Batches(…)`.
      steps: updates that the state has seen at the end of the run.
      hooks: called in this order after each update.
      grace_seconds: if the run does not end, hooks included, within this time of the signal, the
        process does, with status 75; None: it may take any time.

    Attributes:
      state: after the last update that was made; None before `fit`.
    """

    def __init__(
        self,
        train: Stepper,
        batches: BatchSource,
        *,
        steps: int,
        hooks: Sequence[Hook] = (),
        grace_seconds: float | None = None,
    ) -> None:
        self.train = train
        self.batches = batches
        self.steps = steps
        self.hooks = tuple(hooks)
        self.grace_seconds = grace_seconds
        self.state: TrainState | None = None

    def fit(self, state: TrainState) -> TrainState:
        """Returns the state after `steps` updates, or fewer if the run was stopped.

        It starts from `state.step`. `state` is donated; use what is returned.
        """
        if isinstance(self.train, CheckingStepper):
            self.train.check_state(state)
        self.state = state
        with StopSignal(self.grace_seconds) as stop:
            try:
                self._run(stop)
                jax.block_until_ready(self.state)
                for hook in self.hooks:
                    hook.on_end(self.state)
            except Exception as error:
                self._tell_hooks(error)
                raise
        return self.state

    def _run(self, stop: StopSignal) -> None:
        assert self.state is not None
        previous, agreed = None, Agreement()
        for hook in self.hooks:
            if isinstance(hook, StartHook):
                hook.on_start(self.state)
        for step in range(int(self.state.step), self.steps):
            batch = self.batches.batch(step)
            with jax.profiler.StepTraceAnnotation("step", step_num=step + 1), stop.held():
                self.state, metrics = self.train.step(self.state, batch)
            # At most two steps are in flight: the devices never wait for the host, and the host,
            # which reads signals and holds batches, does not run far ahead of them.
            jax.block_until_ready(previous)
            previous = metrics
            for hook in self.hooks:
                hook.on_step(step + 1, self.state, metrics)
            if agreed(stop.received):
                break

    def _tell_hooks(self, error: Exception) -> None:
        """Gives hooks the last whole state; what goes wrong now must not hide what did before."""
        assert self.state is not None
        for hook in self.hooks:
            if isinstance(hook, ErrorHook):
                try:
                    hook.on_error(self.state, error)
                except Exception as second:
                    error.add_note(f"{type(hook).__name__}.on_error failed too: {second}")


class EveryN:
    """A hook that passes only every N-th step on.

    Args:
      n: 1 passes every step.
      hook: the hook to call.
    """

    def __init__(self, n: int, hook: Hook) -> None:
        self.n = n
        self.hook = hook

    def on_start(self, state: TrainState) -> None:
        """Calls the hook, if it wants to be."""
        if isinstance(self.hook, StartHook):
            self.hook.on_start(state)

    def on_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Calls the hook if N divides `step`."""
        if step % self.n == 0:
            self.hook.on_step(step, state, metrics)

    def on_end(self, state: TrainState) -> None:
        """Calls the hook."""
        self.hook.on_end(state)

    def on_error(self, state: TrainState, error: Exception) -> None:
        """Calls the hook, if it wants to be."""
        if isinstance(self.hook, ErrorHook):
            self.hook.on_error(state, error)
