"""Saving and restoring training states, on Orbax."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from hybrid_jax.checkpoint.description import describe, is_saved
from hybrid_jax.checkpoint.folder import StepFolder
from hybrid_jax.checkpoint.manifest import Manifest
from hybrid_jax.checkpoint.recovery import read_good_step, read_newest_manifest
from hybrid_jax.checkpoint.retention import Retention
from hybrid_jax.checkpoint.tree import from_nested, to_nested
from hybrid_jax.checkpoint.writer import Writer
from hybrid_jax.config.paths import local_path
from hybrid_jax.errors import UserError
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep

PyTree = Any


class Checkpointer:
    """Saves training states that restore on any layout, and takes care that one is always good.

    On disk, a step holds parameters and optimizer state in canonical order (layers by depth), in a
    format that any Orbax reader opens, and a manifest in JSON: name, shape, dtype, logical axes and
    digest of every array, model, strategy, metrics, versions. None of it depends on the strategy,
    so a state saved under one restores under any other.

    Saving is asynchronous: `save` returns when the devices' memory has been copied. A background
    thread then reads the step back, compares digests, and notes checksums of the files; only then
    are older steps deleted. A process killed at any instant leaves the last good step intact.

    Until the first `save` or `prepare` nothing is written, deleted or renamed: the checkpoints of
    a running run can be read as often as wanted, from a folder that is read-only too. Of all that
    save, only one at a time may use a folder.

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
      path: the folder; made by the first `save`. All processes must see the same one.
      keep_last: newest steps to keep, at least 1.
      keep_best: steps to keep that are best by `metric`.
      metric: name in the `metrics` given to `save`.
      mode: whether a smaller or a larger value of it is better.

    Raises:
      UserError: `path` is a URL of another machine, or a number is out of range.
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
        self._folder = StepFolder(local_path("path", path).absolute(), metric, sign)
        self._retention = Retention(keep_last, keep_best)
        self._writer: Writer | None = None

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return self._folder.path

    @property
    def steps(self) -> list[int]:
        """Saved steps, oldest first, without those that this object has found damaged."""
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
        return None if self._writer is None else self._writer.failure

    def manifest(self, step: int | None = None) -> Manifest:
        """Returns what a step, by default the newest, says of itself.

        Raises:
          UserError: there is no such step, or its manifest is damaged.
        """
        return read_newest_manifest(self._folder, step)

    def prepare(self) -> None:
        """Makes the folder ready for `save`, which does it otherwise.

        A run calls it before it trains, to learn at once whether its folder can be written to. What
        a killed run left half-written is removed, and steps found damaged are renamed: nobody else
        may be saving there.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpointer = Checkpointer(f"{folder}/run")
        ...     missing = not checkpointer.path.exists()
        ...     checkpointer.prepare()
        ...     missing, checkpointer.path.exists()
        (True, True)

        Raises:
          UserError: the folder cannot be made or written to.
        """
        self._prepared()

    def save(
        self,
        train: TrainStep,
        state: TrainState,
        *,
        metrics: Mapping[str, float] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts to save `state` as step `state.step`; the same state is not saved twice.

        Waits for the update that makes `state`, and for an earlier save that is still going on.
        `state` may be donated afterwards.

        Args:
          train: the step that `state` belongs to.
          metrics: what was measured of it.
          config: JSON values to keep with it, such as the data's fingerprint.

        Raises:
          RunError: this or the last save failed (disk full, say); says which step is still good.
          UserError: the folder has a newer step, or another state of this one; or `state` does not
            belong to `train`.
        """
        train.check_state(state)
        # First: a step that is still being written would be there for some processes only.
        self.wait()
        writer = self._prepared()
        state = train.canonical_state(state)
        nested = to_nested(state)
        manifest = describe(train, state, metrics or {}, config or {})
        if is_saved(self._folder, manifest):
            writer.verify(manifest)
        else:
            writer.write(nested, manifest)

    def restore(self, train: TrainStep, step: int | None = None) -> TrainState:
        """Returns the state of a step, by default the newest good one, on the layout of `train`.

        Every process reads only what its devices hold. A damaged step is named in a warning, and
        the next older one is taken; who saves here renames the damaged one. Where `step` is given,
        a damaged one is an error.

        Raises:
          UserError: no step is there, none is good, or it was saved by a model or an optimizer
            of other shapes.
        """
        like = train.abstract_canonical_state()
        nested = self._restore(to_nested(like), step)
        return train.from_canonical(from_nested(nested, like))

    def restore_params(self, train: TrainStep | None = None, step: int | None = None) -> PyTree:
        """Returns the canonical parameters of a step, without optimizer state.

        Args:
          train: puts them where its canonical parameters lie; None: NumPy arrays on this host.
          step: the newest good one by default.

        Raises:
          UserError: as `restore`.
        """
        if train is not None:
            like = train.abstract_canonical_state().params
            return from_nested(self._restore({"params": to_nested(like)}, step)["params"], like)
        return self._restore(None, step)["params"]

    def wait(self) -> None:
        """Blocks until the last save is complete and verified.

        Raises:
          RunError: it failed.
        """
        if self._writer is not None:
            self._writer.wait()

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
        # What went wrong first is reported, not what it led to; and maybe on this process alone, so
        # that the others are not waited for.
        self._release()

    def _restore(self, like: dict[str, Any] | None, step: int | None) -> dict[str, Any]:
        nested = read_good_step(self._folder, like, step, self._part)
        if self._writer is not None and step is None:
            self._writer.set_damaged_aside()
        return nested

    def _prepared(self) -> Writer:
        if self._writer is None:
            self._writer = Writer(self._folder, self._retention, self._part)
        self._writer.set_damaged_aside()
        return self._writer

    def _release(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
