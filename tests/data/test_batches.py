"""Batches are functions of (sources, seed, step); held-out batches have every target once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.data.batches import Batches, EvaluationBatches
from hybrid_jax.data.source import TokenSource
from hybrid_jax.errors import UserError


def make_source(num_tokens: int, *starts: int, first: int = 0, name: str = "x") -> TokenSource:
    """Documents of the tokens first, first + 1, ..."""
    tokens = np.arange(first, first + num_tokens)
    return TokenSource(name, tokens, np.array([0, *starts]), first + num_tokens, num_tokens)


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for name, array in batch.items():
        np.testing.assert_array_equal(array, other[name])


MIXTURE = [make_source(200, 50, 120), make_source(90, first=1000), make_source(60, 7, first=5000)]
WEIGHTS = [0.5, 0.3, 0.2]


@pytest.mark.parametrize("global_batch", [1, 4, 10, 23])
def test_every_row_once_per_epoch_across_batch_boundaries(global_batch):
    batches = Batches(make_source(52), global_batch=global_batch, seq_len=5, seed=3)
    assert batches.num_rows == (10,)
    tokens = [batches.batch(step)["tokens"][:, 0] for step in range(30 // global_batch + 1)]
    seen = (np.concatenate(tokens) // 5).tolist()
    epochs = [seen[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@settings(deadline=None)
@given(steps=st.lists(st.integers(0, 300), min_size=1, max_size=8), seed=st.integers(0, 5))
def test_a_batch_depends_on_seed_and_step_only(steps, seed):
    """Fresh objects, any order of steps: a run that resumes in the middle of an epoch."""
    sizes = {"global_batch": 6, "seq_len": 5, "seed": seed, "weights": WEIGHTS}
    one = Batches(MIXTURE, **sizes)
    for step in steps:
        assert_same(one.batch(step), Batches(MIXTURE, **sizes).batch(step))


def test_a_resumed_run_sees_what_an_uninterrupted_one_would_have_seen():
    def make():
        return Batches(MIXTURE, global_batch=4, seq_len=5, seed=1, weights=WEIGHTS)

    whole, resumed = make(), make()
    expected = [whole.batch(step) for step in range(60)]
    for step in range(37, 60):
        assert_same(resumed.batch(step), expected[step])
    assert any(np.any(a["tokens"] != b["tokens"]) for a, b in itertools.pairwise(expected))


def test_another_seed_is_another_order():
    one, other = (Batches(make_source(1000), global_batch=8, seq_len=7, seed=s) for s in (1, 2))
    assert np.any(one.batch(0)["tokens"] != other.batch(0)["tokens"])


def test_the_global_order_does_not_depend_on_the_batch_size():
    small, large = (
        Batches(MIXTURE, global_batch=size, seq_len=3, weights=WEIGHTS) for size in (2, 8)
    )
    for name, array in large.batch(1).items():
        joined = np.concatenate([small.batch(step)[name] for step in range(4, 8)])
        np.testing.assert_array_equal(array, joined)


def test_targets_are_the_next_tokens():
    batch = Batches(make_source(101), global_batch=4, seq_len=10).batch(2)
    np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
    np.testing.assert_array_equal(batch["weights"], np.ones((4, 10)))
    assert {name: array.dtype for name, array in batch.items()} == {
        "tokens": np.int32,
        "targets": np.int32,
        "weights": np.float32,
    }


def test_a_mixture_has_the_shares_and_the_keys_of_all():
    batches = Batches(MIXTURE, global_batch=10, seq_len=5, weights=WEIGHTS)
    for step in range(20):
        batch = batches.batch(step)
        assert sorted(batch) == ["positions", "segment_ids", "targets", "tokens", "weights"]
        owners = np.digitize(batch["tokens"], [1000, 5000])
        assert np.all(owners == owners[:, :1])
        assert np.bincount(owners[:, 0]).tolist() == [5, 3, 2]
        np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
        # Tokens count up, so that the documents' first tokens are known.
        begins = np.isin(batch["targets"], [50, 120, 5007])
        np.testing.assert_array_equal(batch["weights"], 1.0 - begins)


def test_the_fingerprint_tells_all_that_batches_depend_on():
    def fingerprint(sources=MIXTURE, **changes):
        options = {"global_batch": 4, "seq_len": 5, "seed": 1, "weights": WEIGHTS}
        return Batches(sources, **{**options, **changes}).fingerprint

    prints = {
        fingerprint(),
        fingerprint(global_batch=8),
        fingerprint(seq_len=6),
        fingerprint(seed=2),
        fingerprint(weights=[0.3, 0.5, 0.2]),
        fingerprint(MIXTURE[::-1]),
        fingerprint([MIXTURE[0].first(190), *MIXTURE[1:]]),
    }
    assert len(prints) == 7
    assert fingerprint() == fingerprint()


@pytest.mark.parametrize("num_tokens", [2, 7, 21, 22, 40])
def test_evaluation_covers_the_text_once(num_tokens):
    batches = EvaluationBatches(make_source(num_tokens), global_batch=2, seq_len=5)
    parts = list(batches)
    assert len(parts) == len(batches)
    assert all(part["tokens"].shape == (2, 5) for part in parts)
    joined = {name: np.concatenate([part[name].ravel() for part in parts]) for name in parts[0]}
    counted = joined["weights"] == 1
    np.testing.assert_array_equal(joined["targets"][counted], np.arange(1, num_tokens))
    np.testing.assert_array_equal(joined["tokens"][counted], np.arange(num_tokens - 1))
    np.testing.assert_array_equal(joined["weights"][~counted], 0)
    assert parts[-1]["weights"].any()


@settings(deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    global_batch=st.integers(1, 4),
    seq_len=st.integers(1, 6),
)
def test_evaluation_of_packed_sources_covers_each_document_once(sizes, global_batch, seq_len):
    """Of each document every token but the first, in order, whatever the rows."""
    sources = [
        make_source(sum(lengths), *np.cumsum(lengths)[:-1], first=100 * number)
        for number, lengths in enumerate(sizes)
    ]
    batches = list(EvaluationBatches(sources, global_batch=global_batch, seq_len=seq_len))
    weights = np.concatenate([batch["weights"].ravel() for batch in batches])
    targets = np.concatenate([batch["targets"].ravel() for batch in batches])
    expected = [
        target
        for source in sources
        for target in source.tokens.tolist()
        if target - source.tokens[0] not in source.starts
    ]
    assert targets[weights == 1].tolist() == expected
    assert set(weights.tolist()) <= {0.0, 1.0}
    assert all(batch["tokens"].shape == (global_batch, seq_len) for batch in batches)


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (make_source(8, name="short"), {"seq_len": 8}, "'short' has 8 tokens, but one row .* 9: "),
        (make_source(8), {"global_batch": 0}, "global_batch=0, seq_len=4: both must be at least"),
        (make_source(8), {"seed": -1}, "seed=-1: must be at least 0"),
        ([], {}, "no sources: give at least one"),
        (MIXTURE, {}, "3 sources have 0 weights: give one for each"),
        (MIXTURE, {"weights": [0.5, 0.5]}, "3 sources have 2 weights"),
        (MIXTURE, {"weights": [1, 1, 2]}, "sum to 4, but must sum to 1: use 0.25, 0.25, 0.5"),
        (MIXTURE, {"weights": [0.5, 0.5, 0]}, "0 must be at least 1e-6"),
        ([*MIXTURE[:2], make_source(4, name="y")], {"weights": WEIGHTS}, "'y' has 4 tokens"),
    ],
)
def test_bad_arguments(sources, options, message):
    with pytest.raises(UserError, match=message):
        Batches(sources, **{"global_batch": 2, "seq_len": 4, **options})


def test_too_short_to_evaluate():
    with pytest.raises(UserError, match="has 1 tokens"):
        EvaluationBatches(make_source(1), global_batch=2, seq_len=4)
