"""What a device holds of state and batch, part by part: what the compiler calls arguments."""

import jax
import optax
import pytest
import tiny

import hybrid_jax as hj

SCALARS = 4 * 8  # the step and the seven numbers of the guard


@pytest.mark.parametrize(
    ("tx", "moments", "counters"),
    [
        (optax.sgd(1e-3), [], 0),
        (optax.sgd(1e-3, momentum=0.9), ["trace"], 0),
        (optax.adamw(optax.linear_schedule(1e-3, 0, 9)), ["mu", "nu"], 2),
        (optax.lion(1e-3), ["mu"], 1),
    ],
    ids=["sgd", "momentum", "adamw", "lion"],
)
@pytest.mark.parametrize("fields", [{"data": 8, "zero": 0}, {"stage": 2, "data": 2, "model": 2}])
def test_parts(fields, tx, moments, counters):
    strategy = hj.Strategy(**fields)
    train = hj.make_train_step(tiny.decoder(), tx, strategy, hj.make_mesh(strategy))
    report = hj.inspect(train, (16, 8))
    params = train.init(jax.random.key(0)).params
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))
    assert report.memory.state == {
        "parameters": held,
        **{f"optimizer: {moment}": held for moment in moments},
        "scalars": SCALARS + 4 * counters,
        "batch": 3 * 16 * 8 * 4 // strategy.data,
    }
    assert sum(report.memory.state.values()) == report.memory.argument
    assert "layout and padding" not in str(report)
