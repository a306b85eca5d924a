"""Shipped configurations become train steps: their parameters can be placed on their devices."""

from pathlib import Path

import jax
import numpy as np
import pytest

from hybrid_jax.build import build, build_train_step
from hybrid_jax.config.load import load_config
from hybrid_jax.train.state import TrainState

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
ON_EIGHT = [
    path for path in CONFIGS if load_config(path, ["cpu_devices=null"]).strategy.num_devices == 8
]


@pytest.mark.parametrize("path", ON_EIGHT, ids=lambda path: path.stem)
def test_a_shipped_config_can_be_placed(path):
    train = build_train_step(load_config(path, ["cpu_devices=8"]))
    state = train.abstract_state()
    assert isinstance(state, TrainState)
    whole = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    on_one = sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state.params)
    )
    assert on_one < whole / 4


def test_held_out_batches_are_limited_and_scored_by_the_same_tokens():
    overrides = ["train.eval_batches=2", "data.global_batch=8", "data.seq_len=16"]
    run = build(load_config(CONFIGS[-1].with_name("quickstart.yaml"), overrides))
    assert len(run.validation) == 2
    targets = np.concatenate([batch["targets"].ravel() for batch in run.validation])
    weights = np.concatenate([batch["weights"].ravel() for batch in run.validation])
    assert weights.sum() == 2 * 8 * 16
    counts = np.bincount(run.batches.tokens, minlength=256) + 1.0
    nll = np.log(counts.sum() / counts)[targets]
    np.testing.assert_allclose(run.unigram_loss, (nll * weights).sum() / weights.sum(), rtol=1e-6)
