"""Writes the steps of a folder in the background, verifies them, and then deletes older ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from hybrid_jax.checkpoint import housekeeping
from hybrid_jax.checkpoint.folder import StepFolder
from hybrid_jax.checkpoint.manifest import Manifest
from hybrid_jax.checkpoint.processes import anywhere, raise_shared, wait_for_all
from hybrid_jax.checkpoint.retention import Retention
from hybrid_jax.checkpoint.verification import Verification, cannot_save
from hybrid_jax.errors import RunError, UserError

_CHUNK_BYTES = 2**24  # of an array in a file: what another layout reads too much at its borders
_FILE_BYTES = 2**30


class Writer:
    """Owns a folder of steps: nobody else may write to it at the same time.

    All processes make one together, and call its methods together, but for `join` and `close`.

    Args:
      folder: made if missing, and tidied.
      retention: which steps to keep.
      part: (index, number) of this process.

    Raises:
      UserError: the folder cannot be made or written to.
    """

    def __init__(self, folder: StepFolder, retention: Retention, part: tuple[int, int]) -> None:
        self._folder = folder
        self._retention = retention
        self._part = part
        self._verification: Verification | None = None
        self._is_pending = False
        raise_shared(housekeeping.make_writable(folder.path, part[0]), UserError)
        if part[0] == 0:
            housekeeping.tidy(folder.path)
        wait_for_all("checkpoint folder is tidy")
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.PyTreeCheckpointHandler(use_zarr3=True),
                manifest=ocp.JsonCheckpointHandler(),
            )
        )

    @property
    def failure(self) -> str | None:
        """What has gone wrong on this process with the step on its way; does not wait."""
        return None if self._verification is None else self._verification.failure

    def set_damaged_aside(self) -> None:
        """Renames the steps that were found damaged."""
        # All processes know of the same damage; what is on disk, they see at different times.
        if not self._folder.knows_damage:
            return
        if self._part[0] == 0:
            for step in self._folder.damaged:
                housekeeping.set_aside(self._folder.path, step)
        wait_for_all("damaged steps set aside")
        self._folder.forget_damage()

    def write(self, nested: dict[str, Any], manifest: Manifest) -> None:
        """Starts to save the arrays of a step; returns when their memory may be given away.

        Raises:
          RunError: it failed.
        """
        folder = self._folder / manifest.step
        chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), nested)
        self._is_pending = True
        try:
            self._orbax.save(
                folder,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(
                        nested, save_args=chunks, ocdbt_target_data_file_size=_FILE_BYTES
                    ),
                    manifest=ocp.args.JsonSave(manifest.to_json()),
                ),
            )
        except Exception as error:
            raise self._failed(cannot_save(folder, error)) from error
        self._start_verification(manifest, self._orbax.wait_until_finished)

    def verify(self, manifest: Manifest) -> None:
        """Starts to read back a step that is on disk, unless that has been done."""
        if anywhere(not self._folder.is_verified(manifest.step)):
            self._is_pending = True
            self._start_verification(manifest, lambda: None)

    def wait(self) -> None:
        """Blocks until the last step is complete and verified, and older ones are deleted.

        Raises:
          RunError: it failed, on this process or on another.
        """
        if not self._is_pending:
            return
        self._is_pending = False
        raise_shared(self.join(), self._failed)
        if self._part[1] > 1:
            self._prune()  # only now has every process stamped its share
            wait_for_all("older steps deleted")

    def join(self) -> str | None:
        """Waits for what this process is saving; returns what failed here."""
        verification, self._verification = self._verification, None
        if verification is None:
            return None
        verification.join()
        return verification.failure

    def close(self) -> None:
        """Releases threads and files; waits for no other process."""
        self.join()
        with contextlib.suppress(Exception):  # a failed save, which `wait` has reported
            self._orbax.close()

    def _start_verification(self, manifest: Manifest, write: Callable[[], None]) -> None:
        self._verification = Verification(
            self._folder / manifest.step, manifest, self._part, write, self._prune
        )
        self._verification.start()

    def _prune(self) -> None:
        if self._part[0] == 0:
            for step in self._retention.superseded(self._folder):
                housekeeping.delete(self._folder.path, step)

    def _failed(self, failure: str) -> RunError:
        good = self._folder.last_good
        rest = "there is no earlier one" if good is None else f"the last good one is step {good}"
        return RunError(f"{failure}; {rest}.")
