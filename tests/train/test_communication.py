"""What crosses which mesh axis, counted in the compiled step (DESIGN: counted communication)."""

import jax
import optax
import pytest
import tiny

import hybrid_jax as hj


def step_ledger(**fields):
    strategy = hj.Strategy(stage=2, data=2, model=2, precision="f32", **fields)
    train = hj.make_train_step(tiny.decoder(), optax.adamw(1e-3), strategy, hj.make_mesh(strategy))
    split = [p for p in jax.tree.leaves(train.placements) if "data" in p.zero_axes]
    return hj.inspect(train, (16, 8)).ledger, len(split)


@pytest.mark.parametrize("microbatches", [2, 8])
def test_gradients_and_parameters_cross_data_once_a_step(microbatches):
    ledger, num_split = step_ledger(microbatches=microbatches)
    ledger.assert_no(axis="data", in_loop=True)
    assert ledger.count("all-gather", axis="data") == num_split
    assert ledger.count("reduce-scatter", axis="data") == num_split


def test_zero_0_gathers_nothing_and_reduces_once():
    ledger, _ = step_ledger(microbatches=4, zero=0)
    ledger.assert_no(axis="data", in_loop=True)
    ledger.assert_no("all-gather", axis="data")
    ledger.assert_no("all-gather", axis="model")


def test_zero_3_gathers_in_the_loop_and_keeps_model_shards_apart():
    ledger, _ = step_ledger(microbatches=4, zero=3)
    assert ledger.count("all-gather", axis="data", in_loop=True) > 0
    assert ledger.count("reduce-scatter", axis="data", in_loop=True) > 0
    ledger.assert_no("all-gather", axis="model")


def test_one_permute_each_way_in_a_tick():
    ledger, _ = step_ledger(microbatches=4)
    # 1F1B, 2 stages, 4 microbatches: a tick of F, 4 of F and B, and a last one of B, whose result
    # nobody needs.
    assert ledger.count("collective-permute", axis="stage") == 1 + 2 * 4
