"""Shipped configurations become train steps: their parameters can be placed on their devices."""

from pathlib import Path

import jax
import numpy as np
import pytest

from hybrid_jax.config.load import load_config
from hybrid_jax.data.open import open_source
from hybrid_jax.errors import UserError
from hybrid_jax.hooks import (
    Evaluate,
    Heartbeat,
    Patient,
    Profile,
    Save,
    StopOnFailure,
    StopWhenDiverged,
)
from hybrid_jax.metrics.log import Log
from hybrid_jax.run import (
    build,
    build_checkpointer,
    build_data,
    build_hooks,
    build_log,
    build_train_step,
    build_watchdog,
)
from hybrid_jax.train.state import TrainState
from hybrid_jax.trainer import EveryN

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = sorted({*CONFIGS.glob("*.yaml")} - {*CONFIGS.glob("*_strategies.yaml")})
ON_EIGHT = [
    path for path in RUNS if load_config(path, ["cpu_devices=null"]).strategy.num_devices == 8
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
    run = build(load_config(CONFIGS / "quickstart.yaml", overrides))
    assert len(run.validation) == 2
    targets = np.concatenate([batch["targets"].ravel() for batch in run.validation])
    weights = np.concatenate([batch["weights"].ravel() for batch in run.validation])
    assert weights.sum() == 2 * 8 * 16
    train, held_out = open_source("kjv").split(0.05)
    counts = np.bincount(train.tokens, minlength=256) + 1.0
    np.testing.assert_array_equal(targets, held_out.tokens[1 : len(targets) + 1])
    nll = np.log(counts.sum() / counts)[targets]
    np.testing.assert_allclose(run.unigram_loss, (nll * weights).sum() / weights.sum(), rtol=1e-6)
    assert run.bytes_per_token == 1.0
    with run.batches as batches:
        first = batches.batch(0)["tokens"]
    np.testing.assert_array_equal(first, build_data(run.config)[0].batch(0)["tokens"])
    assert run.data_fingerprint == build_data(run.config)[0].fingerprint


def test_a_mixture_is_trained_and_evaluated_by_its_weights(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" * 3000)
    (tmp_path / "b.txt").write_bytes(b"b" * 3000)
    sources = (
        f"[{{path: {tmp_path}/a.txt, weight: 0.75}}, {{path: {tmp_path}/b.txt, weight: 0.25}}]"
    )
    overrides = [
        "data.source=null",
        f"data.sources={sources}",
        "data.validation_fraction=0.5",
        "train.eval_batches=3",
        "data.global_batch=8",
        "data.seq_len=16",
    ]
    config = load_config(CONFIGS / "quickstart.yaml", overrides)
    batches, validation = build_data(config)
    train_targets = [batches.batch(step)["targets"] for step in range(5)]
    held_out_targets = [batch["targets"] for batch in validation]
    for targets in (train_targets, held_out_targets):
        np.testing.assert_array_equal(np.mean(np.array(targets) == ord("b")), 0.25)
    assert len(validation) == 3


def test_bad_data_is_told_before_a_model_is_built():
    config = load_config(CONFIGS / "quickstart.yaml", ["data.source=nothing"])
    with pytest.raises(UserError, match="no text 'nothing'"):
        build(config)


def kinds(hooks) -> list[type]:
    def kind(hook) -> type:
        return kind(hook.hook) if isinstance(hook, EveryN | Patient) else type(hook)

    return [kind(hook) for hook in hooks]


def test_hooks_stand_in_their_order(tmp_path):
    overrides = [
        f"train.output_dir={tmp_path}",
        "train.profile_steps=[2,3]",
        "train.stall_seconds=60",
        "train.eval_batches=1",
    ]
    run = build(load_config(CONFIGS / "quickstart.yaml", overrides))
    with (
        build_log(run) as log,
        build_checkpointer(run.config) as checkpointer,
        build_watchdog(run.config) as watchdog,
    ):
        assert (tmp_path / "heartbeats" / "heartbeat-0.json").exists()
        hooks = build_hooks(run, log, checkpointer, watchdog)
    expected = [Log, Profile, Evaluate, Save, Heartbeat, StopOnFailure, StopWhenDiverged]
    assert kinds(hooks) == expected
    assert [hook.n for hook in hooks if isinstance(hook, EveryN)] == [80, 40]
    assert hooks[-1].max_skipped == 5


def test_hooks_that_nobody_wants():
    overrides = [
        "train.max_skipped=null",
        "train.stall_seconds=null",
        "train.eval_batches=1",
        "train.output_dir=null",
        "checkpoint.every=null",
    ]
    run = build(load_config(CONFIGS / "quickstart.yaml", overrides))
    with (
        build_log(run) as log,
        build_checkpointer(run.config) as checkpointer,
        build_watchdog(run.config) as watchdog,
    ):
        assert (checkpointer, watchdog) == (None, None)
        assert kinds(build_hooks(run, log)) == [Log, Evaluate, StopOnFailure]
