"""What a run does besides training: its hooks and its watchdog."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from hybrid_jax.checkpoint.checkpointer import Checkpointer
from hybrid_jax.config.run import RunConfig
from hybrid_jax.errors import RunError
from hybrid_jax.hooks import (
    Evaluate,
    Heartbeat,
    LocateNonfinite,
    Patient,
    Profile,
    Save,
    StopOnFailure,
    StopWhenDiverged,
    Watched,
)
from hybrid_jax.hooks.failure import Failing
from hybrid_jax.metrics.log import Log
from hybrid_jax.run.checkpoints import resume_signature
from hybrid_jax.run.wiring import Run
from hybrid_jax.runtime.watchdog import Watchdog
from hybrid_jax.trainer import EveryN, Hook


def build_hooks(
    run: Run,
    log: Log,
    checkpointer: Checkpointer | None = None,
    watchdog: Watchdog | None = None,
    locks: Sequence[Failing] = (),
    *,
    locate_nan: Callable[[str], object] | None = None,
) -> tuple[Hook, ...]:
    """Returns the hooks of a run, in the order in which they belong.

    Args:
      log: from `build_log`.
      checkpointer: from `build_checkpointer`; None: nothing is saved.
      watchdog: from `build_watchdog`; None: a run that stalls stays.
      locks: from `lock_folders`.
      locate_nan: is given a line on what was not finite in each step that was skipped; None: it is
        not looked for.
    """
    config, steps = run.config, run.config.train.steps
    hooks: list[Hook] = [log]
    writers: list[Failing] = [*locks]
    held_out = run.validation if watchdog is None else Watched(run.validation, watchdog)

    def patient(hook: Hook) -> Hook:
        return hook if watchdog is None else Patient(hook, watchdog)

    if config.train.profile_steps is not None:
        assert config.train.output_dir is not None, "the config has checked it"
        folder = Path(config.train.output_dir) / "profile"
        profile = Profile(*config.train.profile_steps, folder)
        hooks.append(profile)
        writers.append(profile)
    if locate_nan is not None:
        hooks.append(LocateNonfinite(run.train, run.batches.batches, locate_nan))
    # A run that is stopped early must save soon: only a whole one is evaluated at its end.
    last = steps if checkpointer is not None else None
    evaluation = Evaluate(run.train, held_out, log, last_step=last)
    hooks.append(EveryN(config.train.eval_every or steps, patient(evaluation)))
    if checkpointer is not None:
        keep = {"data": run.data_fingerprint, "run": resume_signature(config)}
        save = Save(
            checkpointer,
            run.train,
            evaluation,
            log,
            config=keep,
            last_step=steps,
            after_errors=config.checkpoint.on_error,
        )
        hooks.append(EveryN(config.checkpoint.every or steps, patient(save)))
        writers.append(checkpointer)
    if watchdog is not None:
        hooks.append(Heartbeat(watchdog))
        writers.append(watchdog)
    hooks.append(StopOnFailure(log, writers, lambda: _say_last_good(checkpointer)))
    if config.train.max_skipped is not None:
        stop = StopWhenDiverged(config.train.max_skipped, lambda: _last_good(checkpointer))
        hooks.append(stop)
    return tuple(hooks)


def build_watchdog(config: RunConfig) -> contextlib.AbstractContextManager[Watchdog | None]:
    """Returns the watchdog of this process, to be closed; None where none is asked for.

    Raises:
      UserError: the folder of its heartbeats cannot be made.
      RunError: its disk is full or broken.
    """
    seconds, folder = config.train.stall_seconds, config.train.output_dir
    if seconds is None:
        return contextlib.nullcontext()
    path = None if folder is None else Path(folder) / "heartbeats"
    limit = None if isinstance(seconds, str) else seconds
    return Watchdog(limit, path, jax.process_index(), jax.process_count())


def _last_good(checkpointer: Checkpointer | None) -> str | None:
    if checkpointer is None:
        return None
    checkpointer.wait()  # the newest may still be on its way
    step = checkpointer.last_good_step
    return None if step is None else f"step {step} in {checkpointer.path}"


def _say_last_good(checkpointer: Checkpointer | None) -> str:
    """Names the last good checkpoint; several processes are not waited for: they may be gone."""
    with contextlib.suppress(RunError):  # of a save that fails too, or a folder that is gone
        if checkpointer is not None and jax.process_count() == 1:
            checkpointer.wait()
    try:
        step = None if checkpointer is None else checkpointer.last_good_step
    except OSError as error:
        return f"its checkpoints cannot be read ({error.strerror})"
    if checkpointer is None or step is None:
        return "no checkpoint was saved"
    return f"the last good checkpoint is step {step} in {checkpointer.path}"
