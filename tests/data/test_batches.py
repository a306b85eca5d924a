import numpy as np
import pytest

from hybrid_jax.data.batches import Batches, EvaluationBatches
from hybrid_jax.errors import UserError


def starts(batch: dict[str, np.ndarray], seq_len: int) -> list[int]:
    """The window numbers of a batch of `np.arange` tokens."""
    return (batch["tokens"][:, 0] // seq_len).tolist()


@pytest.mark.parametrize("global_batch", [1, 4, 10, 23])
def test_every_window_once_per_epoch_across_batch_boundaries(global_batch):
    batches = Batches(np.arange(52), global_batch, seq_len=5, seed=3)
    assert batches.num_windows == 10
    steps = range(30 // global_batch + 1)
    seen = [window for step in steps for window in starts(batches.batch(step), 5)]
    epochs = [seen[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batch_depends_on_seed_and_step_only():
    tokens = np.random.default_rng(0).integers(256, size=1000, dtype=np.uint8)
    forward = Batches(tokens, 3, 7, seed=1)
    expected = [forward.batch(step) for step in range(100)]
    for step in (99, 0, 50, 49):
        for name, value in Batches(tokens, 3, 7, seed=1).batch(step).items():
            np.testing.assert_array_equal(value, expected[step][name])
            np.testing.assert_array_equal(forward.batch(step)[name], value)
    assert np.any(Batches(tokens, 3, 7, seed=2).batch(0)["tokens"] != expected[0]["tokens"])


def test_global_order_does_not_depend_on_the_batch_size():
    small, large = (Batches(np.arange(100), size, 3, seed=0) for size in (2, 8))
    joined = np.concatenate([small.batch(step)["tokens"] for step in range(4)])
    np.testing.assert_array_equal(large.batch(0)["tokens"], joined)


def test_targets_are_the_next_tokens():
    batch = Batches(np.arange(101, dtype=np.uint8), 4, 10, seed=0).batch(2)
    np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
    np.testing.assert_array_equal(batch["weights"], np.ones((4, 10)))
    assert [batch[name].dtype for name in ("tokens", "targets", "weights")] == [
        np.int32,
        np.int32,
        np.float32,
    ]


@pytest.mark.parametrize("num_tokens", [2, 7, 21, 22, 40])
def test_evaluation_covers_the_text_once(num_tokens):
    batches = EvaluationBatches(np.arange(num_tokens), global_batch=2, seq_len=5)
    parts = list(batches)
    assert len(parts) == len(batches)
    assert all(part["tokens"].shape == (2, 5) for part in parts)
    joined = {name: np.concatenate([part[name].ravel() for part in parts]) for name in parts[0]}
    counted = joined["weights"] == 1
    np.testing.assert_array_equal(joined["targets"][counted], np.arange(1, num_tokens))
    np.testing.assert_array_equal(joined["tokens"][counted], np.arange(num_tokens - 1))
    np.testing.assert_array_equal(joined["weights"][~counted], 0)
    assert parts[-1]["weights"].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.arange(8), 2, 8, 0), r"has 8 tokens, but one window with seq_len=8 needs 9"),
        ((np.arange(8), 0, 4, 0), r"global_batch=0, seq_len=4: both must be at least 1"),
        ((np.arange(8), 2, 4, -1), r"seed=-1: must be at least 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        Batches(*arguments)


def test_too_short_to_evaluate():
    with pytest.raises(UserError, match="has 1 tokens"):
        EvaluationBatches(np.arange(1), 2, 4)
