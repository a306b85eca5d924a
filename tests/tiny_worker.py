"""A process that runs what a training run is made of, in little: `python tiny_worker.py FOLDER`.

It joins the others, compiles, steps and saves; FOLDER/phase-<process> says where it is. Further
words: steps=N, join=SECONDS, peer=SECONDS, initialize=own (it calls `jax.distributed` itself),
raise=KIND:STEP (by process 1), and fields to agree on.
"""

import os
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_jax.errors import RunError, UserError
from hybrid_jax.runtime.agree import check_agreement, device_layout
from hybrid_jax.runtime.distributed import initialize_from_environment
from hybrid_jax.runtime.group import leave_group

ERRORS = {"UserError": UserError, "RunError": RunError, "KeyError": KeyError}


def main(folder: Path, words: dict[str, str]) -> None:
    index = int(os.environ.get("JAX_PROCESS_ID", 0))

    def enter(phase: str) -> None:
        (folder / f"phase-{index}").write_text(phase)

    if words.pop("initialize", None) == "own":
        address = os.environ["JAX_COORDINATOR_ADDRESS"]
        jax.distributed.initialize(address, int(os.environ["JAX_NUM_PROCESSES"]), index)
    enter("join")
    initialize_from_environment(
        join_seconds=float(words.pop("join", 60)), peer_seconds=float(words.pop("peer", 10))
    )
    steps, error = int(words.pop("steps", 10)), words.pop("raise", "")
    check_agreement(words)
    check_agreement(device_layout())
    enter("compile")
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))

    def body(x):
        for _ in range(60):  # some seconds to compile
            x = jax.numpy.sin(x @ x.T) @ x
        return x / (1 + jax.numpy.abs(x).max())

    step = jax.jit(body, in_shardings=split, out_shardings=split).lower(
        jax.ShapeDtypeStruct((8 * jax.device_count(), 16), np.float32)
    )
    step = step.compile()
    start = np.ones((8 * jax.device_count(), 16), np.float32)
    x = jax.make_array_from_callback(start.shape, split, lambda part: start[part])
    for number in range(steps):
        enter(f"train {number}")
        x = jax.block_until_ready(step(x))
        if error and index == 1 and error.endswith(f":{number}"):
            raise ERRORS[error.partition(":")[0]](f"something broke at step {number}")
        if number % 3 == 2:
            enter(f"save {number}")
            save(folder, x, number)
    enter("end")
    print("finished")


def save(folder: Path, x: jax.Array, number: int) -> None:
    """Saves over all processes, as `Checkpointer` does."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        manager.save(number, args=ocp.args.PyTreeSave({"x": x}))
        manager.wait_until_finished()


def command() -> int:
    """Turns errors into a line and a status, as the command line does."""
    folder, *words = sys.argv[1:]
    try:
        main(Path(folder), dict(word.split("=", 1) for word in words))
    except (UserError, RunError) as error:
        leave_group(error.status, f"error: {error}", wait=not isinstance(error, UserError))
        print(f"error: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(command())
