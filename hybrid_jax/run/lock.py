"""The folders of a run, held for it alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from hybrid_jax.checkpoint.processes import raise_shared
from hybrid_jax.config.run import RunConfig
from hybrid_jax.errors import RunError, UserError
from hybrid_jax.runtime.lock import FolderLock


@contextlib.contextmanager
def lock_folders(config: RunConfig) -> Iterator[list[FolderLock]]:
    """Holds `train.output_dir` and the folder of checkpoints while it is open; yields the locks.

    It comes before anything in them is touched. Of several processes the first one holds them; all
    wait for its answer.

    Raises:
      UserError: another run holds one, or it cannot be written to.
      RunError: the disk is full or broken.
    """
    given = [config.train.output_dir, config.checkpoint_folder]
    folders = {Path(folder).resolve(): folder for folder in given if folder}
    with contextlib.ExitStack() as stack:
        locks: list[FolderLock] = []
        refusal = None
        if jax.process_index() == 0:
            try:
                locks = [stack.enter_context(FolderLock(path)) for path in folders]
            except (UserError, RunError) as error:
                refusal = error
        raise_shared(
            None if refusal is None else str(refusal),
            lambda found: refusal or UserError(f"the run's folders cannot be used: {found}."),
        )
        yield locks
