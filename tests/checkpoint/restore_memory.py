"""Peak host memory of restoring a state of about 1 GB: `python tests/checkpoint/restore_memory.py`.

Prints, for each layout, the bytes of the state, of the largest shard, and the peak of the process
above what it held before plus the state itself, which lies in host memory where the devices are
virtual.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LAYOUTS = ["data=8", "stage=2 data=2 model=2 microbatches=2", "data=1"]


def main(folder: str) -> dict[str, dict[str, float]]:
    """Saves once, restores once in a process for each layout; returns MB by layout."""
    run(folder, "save", LAYOUTS[0])
    return {layout: json.loads(run(folder, "restore", layout)) for layout in LAYOUTS}


def run(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def child(folder: str, action: str, layout: str) -> None:
    import jax
    import optax

    import hybrid_jax as hj

    sizes = {name: int(value) for name, value in (item.split("=") for item in layout.split())}
    strategy = hj.Strategy(**sizes)
    hj.force_cpu_devices(strategy.num_devices)
    model = hj.models.Decoder(
        hj.models.preset("nano", num_layers=4, embed_dim=1024, num_heads=8, mlp_dim=4096,
                         vocab_size=16384)
    )  # fmt: skip
    train = hj.make_train_step(model, optax.adamw(1e-3), strategy, hj.make_mesh(strategy))
    checkpointer = hj.Checkpointer(folder)
    if action == "save":
        checkpointer.save(train, train.init(jax.random.key(0)))
        checkpointer.close()
        return
    tokens = jax.numpy.zeros((16, 8), int)
    jax.block_until_ready(train.put({"tokens": tokens, "targets": tokens}))  # starts XLA
    before, peak = resident(), [0]
    done = threading.Event()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    state = jax.block_until_ready(checkpointer.restore(train))
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    checkpointer.close()
    leaves = jax.tree.leaves(state)
    shards = [shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards]
    report = {
        "state": sum(leaf.nbytes for leaf in leaves),
        "on devices": sum(shards),
        "largest shard": max(shards),
        "peak beside the state": peak[0] - before - sum(shards),
    }
    megabytes = {name: round(value / 2**20, 1) for name, value in report.items()}
    print(json.dumps({**megabytes, "seconds": round(seconds, 2)}))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            for layout, megabytes in main(folder).items():
                print(layout, megabytes)
