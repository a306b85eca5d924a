"""Saving and restoring training states, on Orbax."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

from hybrid_jax.checkpoint.arrays import array_entries
from hybrid_jax.checkpoint.folder import StepFolder
from hybrid_jax.checkpoint.manifest import Damaged, Manifest
from hybrid_jax.checkpoint.processes import shared
from hybrid_jax.checkpoint.recovery import read_good_step
from hybrid_jax.checkpoint.retention import KeepVerified
from hybrid_jax.checkpoint.tree import from_nested, to_nested
from hybrid_jax.checkpoint.verification import Verification
from hybrid_jax.errors import RunError, UserError
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep

PyTree = Any

_CHUNK_BYTES = 2**24  # of an array in a file: what another layout reads too much at its borders
_FILE_BYTES = 2**30


class Checkpointer:
    """Saves training states that restore on any layout, and takes care that one is always good.

    On disk, a step holds parameters and optimizer state in canonical order (layers by depth), in a
    format that any Orbax reader opens, and a manifest in JSON: name, shape, dtype, logical axes and
    digest of every array, model, strategy, metrics, versions. None of it depends on the strategy,
    so a state saved under one restores under any other.

    Saving is asynchronous: `save` returns when the devices' memory has been copied. A background
    thread then reads the step back, compares digests, and notes checksums of the files; only then
    may older steps be deleted. A process killed at any instant leaves the last good step intact.

    >>> import tempfile, optax, hybrid_jax as hj
    >>> model = hj.models.Decoder(hj.models.preset("nano", num_layers=1))
    >>> layout = hj.Strategy(data=8)
    >>> train = hj.make_train_step(model, optax.adamw(1e-3), layout, hj.make_mesh(layout))
    >>> with tempfile.TemporaryDirectory() as folder, Checkpointer(folder) as checkpointer:
    ...     checkpointer.save(train, train.init(jax.random.key(0)), metrics={"eval_loss": 5.5})
    ...     checkpointer.wait()
    ...     state = checkpointer.restore(train)
    ...     checkpointer.latest_step, checkpointer.manifest().metrics
    (0, {'eval_loss': 5.5})

    Args:
      path: the folder; made if missing. All processes must see the same one.
      keep_last: newest steps to keep, at least 1 (and what is not yet verified).
      keep_best: steps to keep that are best by `metric`.
      metric: name in the `metrics` given to `save`.
      mode: whether a smaller or a larger value of it is better.

    Raises:
      UserError: the folder cannot be made or written to, or a number is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        metric: str = "eval_loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if keep_last < 1 or keep_best < 0 or mode not in ("min", "max"):
            raise UserError(
                f"keep_last={keep_last}, keep_best={keep_best}, mode={mode!r}: keep at least the "
                "last step; mode is 'min' or 'max'."
            )
        self._part = (jax.process_index(), jax.process_count())
        sign = 1 if mode == "max" else -1
        self._folder = folder = StepFolder(path, metric, sign, process=self._part[0])
        self._saving: int | None = None
        self._write_failure: str | None = None
        self._verification: Verification | None = None
        self._manager = ocp.CheckpointManager(
            self.path,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_zarr3=True),
                "manifest": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=KeepVerified(
                    keep_last, keep_best, folder.is_verified, folder.score
                ),
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return self._folder.path

    @property
    def steps(self) -> list[int]:
        """Saved steps, oldest first, those that turn out to be damaged too."""
        return self._folder.steps

    @property
    def latest_step(self) -> int | None:
        """The newest saved step."""
        return max(self.steps, default=None)

    @property
    def last_good_step(self) -> int | None:
        """The newest step that has been read back and found right."""
        return self._folder.last_good

    @property
    def best_step(self) -> int | None:
        """The saved step with the best `metric`; None where none has it."""
        return self._folder.best

    @property
    def failure(self) -> str | None:
        """What has gone wrong with the save on its way, as far as is known; does not wait."""
        if self._verification is None:
            return None
        if self._write_failure is None:
            try:
                self._manager.check_for_errors()
            except Exception as error:
                self._write_failure = self._cannot_save(error)
        return self._write_failure or self._verification_failure(self._verification)

    def manifest(self, step: int | None = None) -> Manifest:
        """Returns what a step, by default the newest, says of itself.

        Raises:
          UserError: there is no such step, or its manifest is damaged.
        """
        step = self._folder.find(step)
        try:
            return self._folder.manifest(step)
        except Damaged as damage:
            raise UserError(f"checkpoint step {step} in {self.path}: {damage}.") from None

    def save(
        self,
        train: TrainStep,
        state: TrainState,
        *,
        metrics: Mapping[str, float] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts to save `state` as step `state.step`; what is saved already is not saved again.

        Waits for the update that makes `state`, and for an earlier save that is still going on.
        `state` may be donated afterwards.

        Args:
          train: the step that `state` belongs to.
          metrics: what was measured of it.
          config: JSON values to keep with it, such as the data's fingerprint.

        Raises:
          RunError: this or the last save failed (disk full, say); says which step is still good.
          UserError: a newer step exists in the folder.
        """
        step = int(state.step)
        # First: a step that is still being written would be there for some processes only.
        self.wait()
        if step in self.steps:
            return
        self._check_newest(step)
        self._saving = step
        state = train.canonical_state(state)
        nested = to_nested(state)
        manifest = Manifest(
            step=step,
            arrays=array_entries(train, state),
            metrics={name: float(value) for name, value in (metrics or {}).items()},
            strategy=dataclasses.asdict(train.strategy),
            config={"model": _model_config(train.model), **(config or {})},
            written_by={"jax": jax.__version__, "orbax-checkpoint": ocp.__version__},
        )
        chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), nested)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(
                        nested, save_args=chunks, ocdbt_target_data_file_size=_FILE_BYTES
                    ),
                    manifest=ocp.args.JsonSave(manifest.to_json()),
                ),
            )
        except Exception as error:
            raise RunError(f"{self._cannot_save(error)}; {self._last_good()}.") from error
        self._verification = Verification(
            self._folder / step, manifest, self._manager.is_saving_in_progress, self._part
        )
        self._verification.start()

    def restore(self, train: TrainStep, step: int | None = None) -> TrainState:
        """Returns the state of a step, by default the newest good one, on the layout of `train`.

        Every process reads only what its devices hold. A damaged step is named in a warning, set
        aside (renamed, not deleted), and the next older one is taken; where `step` is given, a
        damaged one is an error.

        Raises:
          UserError: no step is there, none is good, or it was saved by a model or an optimizer
            of other shapes.
        """
        like = train.abstract_state()
        nested = self._restore(to_nested(like), step)
        return train.from_canonical(from_nested(nested, like))

    def restore_params(self, train: TrainStep | None = None, step: int | None = None) -> PyTree:
        """Returns the canonical parameters of a step, without optimizer state.

        Args:
          train: puts them where its parameters lie; None: NumPy arrays on this host.
          step: the newest good one by default.

        Raises:
          UserError: as `restore`.
        """
        if train is not None:
            like = train.abstract_state().params
            return from_nested(self._restore({"params": to_nested(like)}, step)["params"], like)
        return self._restore(None, step)["params"]

    def wait(self) -> None:
        """Blocks until the last save is complete and verified.

        Raises:
          RunError: it failed.
        """
        if failure := shared(self._finish()):
            raise RunError(f"{failure}; {self._last_good()}.")

    def close(self) -> None:
        """Waits, then releases threads and files."""
        try:
            self.wait()
        finally:
            self._release()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        if exception is None:
            self.close()
            return
        # What went wrong first is told, not what it led to; and maybe on this process alone, so
        # that the others are not waited for.
        self._finish()
        self._release()

    def _restore(self, like: dict[str, Any] | None, step: int | None) -> dict[str, Any]:
        nested, damaged = read_good_step(self._folder, like, step, self._part)
        if damaged:
            self._manager.reload()
        return nested

    def _finish(self) -> str | None:
        """Waits for the last save and its verification; returns what failed on this process."""
        failure, self._write_failure = self._write_failure, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            failure = failure or self._cannot_save(error)
        verification, self._verification = self._verification, None
        if verification is not None:
            verification.join()
            failure = failure or self._verification_failure(verification)
        return failure

    def _verification_failure(self, verification: Verification) -> str | None:
        if verification.failure is None:
            return None
        return f"checkpoint step {self._saving} in {self.path} {verification.failure}"

    def _release(self) -> None:
        with contextlib.suppress(Exception):  # a failed save, of which `wait` has told
            self._manager.close()

    def _cannot_save(self, error: Exception) -> str:
        return f"checkpoint step {self._saving} cannot be saved in {self.path}: {_cause(error)}"

    def _last_good(self) -> str:
        step = self.last_good_step
        return "there is no earlier one" if step is None else f"the last good one is step {step}"

    def _check_newest(self, step: int) -> None:
        latest = self.latest_step
        if latest is not None and latest > step:
            raise UserError(
                f"checkpoint step {step} cannot be saved in {self.path}, which has step {latest}: "
                "go on from that one, or choose another folder."
            )


def _model_config(model: Any) -> dict[str, Any] | None:
    config = getattr(model, "config", None)
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) else None  # pyright: ignore[reportArgumentType]


def _cause(error: BaseException) -> str:
    """The innermost reason, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    if code := re.search(r"os_error_code='(\d+)'", text):  # tensorstore: a long tale of one errno
        return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {text[:300]}"
