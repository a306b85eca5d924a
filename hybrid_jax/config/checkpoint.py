"""When a run saves its state, how much it keeps, and where it begins."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_jax.config.fields import Count, LocalFolder, LocalPath, Natural, check_fields


@dataclass(frozen=True)
class CheckpointConfig:
    """The checkpoints of a run.

    A run that finds checkpoints of its own in its folder resumes from the newest good one. It saves
    its last state when it ends, is stopped or breaks, unless it is killed.

    Attributes:
      every: updates between two checkpoints; None: only at the end, or when it is stopped.
      folder: of the checkpoints; None: `checkpoints` in `train.output_dir`, and none without it.
      keep_last: newest checkpoints to keep.
      keep_best: checkpoints with the lowest held-out loss to keep.
      on_error: whether the last whole state is saved too when an exception ends the run, in one
        process; not when the run ends itself because it diverged or cannot save.
      init_from: folder of another run's checkpoints, whose parameters this run begins with; the
        optimizer, the step and the data begin anew. None: random parameters.

    Raises:
      UserError: a number out of its range, or a path that is no folder of this machine.
    """

    every: Count | None = None
    folder: LocalFolder | None = None
    keep_last: Count = 2
    keep_best: Natural = 1
    on_error: bool = True
    init_from: LocalPath | None = None

    def __post_init__(self):
        check_fields("checkpoint", self)
