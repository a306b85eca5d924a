"""Fifty bits flipped at random places of a checkpoint: every one is noticed."""

import jax
import numpy as np
import optax
import pytest
from tiny import decoder

from hybrid_jax import Checkpointer, Strategy, UserError, make_mesh, make_train_step


def test_every_flipped_bit_is_noticed(tmp_path):
    strategy = Strategy(data=8)
    train = make_train_step(decoder(), optax.adamw(1e-2), strategy, make_mesh(strategy))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(train, train.init(jax.random.key(0)))
        checkpointer.wait()
        step = checkpointer.latest_step
        files = [path for path in sorted((tmp_path / str(step)).rglob("*")) if path.is_file()]
        sizes = np.array([path.stat().st_size for path in files])
        rng = np.random.default_rng(0)
        # Half of the places anywhere among all bytes, half in files drawn evenly: small ones too.
        evenly = rng.choice(np.flatnonzero(sizes), 25)
        by_size = rng.choice(len(files), 25, p=sizes / sizes.sum())
        for number in np.concatenate([evenly, by_size]):
            path, content = files[number], files[number].read_bytes()
            flipped = bytearray(content)
            place = rng.integers(len(content))
            flipped[place] ^= 1 << rng.integers(8)
            path.write_bytes(flipped)
            with pytest.raises(UserError, match="is damaged"):
                checkpointer.restore(train, step=step)
            path.write_bytes(content)
        checkpointer.restore(train, step=step)
