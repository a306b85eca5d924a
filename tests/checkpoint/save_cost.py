"""What a save costs the training loop: `python tests/checkpoint/save_cost.py [8]`.

Trains with steps of more than a second and saves every fifth one, on one device, or on 8 virtual
ones, which share the cores among 64 threads. Prints the seconds in which `save` blocks the loop,
and how much longer the steps are during which a save is written and read back in the background
(on a CPU it takes cores from them; accelerators do not share theirs).
"""

import sys
import tempfile
import time

import jax
import numpy as np
import optax

import hybrid_jax as hj


def main(devices: int) -> None:
    hj.force_cpu_devices(devices)
    sizes = {"data": 2, "stage": 2, "model": 2} if devices == 8 else {}
    strategy = hj.Strategy(**sizes, microbatches=2, precision="f32")
    model = hj.models.Decoder(
        hj.models.preset("nano", num_layers=8, embed_dim=512, num_heads=8, mlp_dim=1536)
    )
    train = hj.make_train_step(model, optax.adamw(1e-3), strategy, hj.make_mesh(strategy))
    state = train.init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 256, (16, 129))
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    steps, blocked = [], []
    with tempfile.TemporaryDirectory() as folder, hj.Checkpointer(folder) as checkpointer:
        for step in range(21):
            started = time.perf_counter()
            state, _ = jax.block_until_ready(train.step(state, batch))
            steps.append(time.perf_counter() - started)
            if step % 5 == 0:
                started = time.perf_counter()
                checkpointer.save(train, state)
                blocked.append(time.perf_counter() - started)
    after = np.array([steps[step] for step in range(6, 21) if step % 5 == 1])
    quiet = np.median([steps[step] for step in range(6, 21) if step % 5 in (3, 4)])
    print(f"state {size:.0f} MB, a step {quiet:.3f} s")
    print(f"save blocks {np.median(blocked[1:]):.4f} s = {np.median(blocked[1:]) / quiet:.1%}")
    print(f"the step after a save takes {np.median(after) - quiet:+.3f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
