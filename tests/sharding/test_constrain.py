"""Hints about the model axis inside the step, and the two halves of a placement."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid_jax import Strategy, make_mesh
from hybrid_jax.errors import UserError
from hybrid_jax.sharding.constrain import (
    MANUAL_AXES,
    automatic_part,
    check_divisible,
    make_constrain,
    manual_part,
)
from hybrid_jax.sharding.rules import resolve_rules


def constrain_on(strategy, rules=None):
    mesh = make_mesh(strategy)
    return make_constrain(resolve_rules(rules), mesh), mesh


def in_step(mesh, function):
    """`function` as the step runs it: by hand over every axis but `model`."""
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=P("data"),
            out_specs=P("data"),
            axis_names=set(MANUAL_AXES),
            check_vma=False,
        )
    )


def test_model_splits_what_the_rules_say():
    constrain, mesh = constrain_on(Strategy(data=2, model=4))
    f = in_step(mesh, lambda x: constrain(x, ("batch", "length", "act_mlp")))
    x = jax.device_put(jnp.ones((4, 8, 16)), NamedSharding(mesh, P("data")))
    assert f(x).sharding.spec == P("data", None, "model")


def test_sequence_parallelism_splits_the_length():
    constrain, mesh = constrain_on(Strategy(data=2, model=4), "megatron+sp")
    f = in_step(mesh, lambda x: constrain(x, ("batch", "norm_length", "act_embed")))
    x = jax.device_put(jnp.ones((4, 8, 16)), NamedSharding(mesh, P("data")))
    assert f(x).sharding.spec[1] == "model"


def test_without_a_model_axis_nothing_is_said():
    constrain, _ = constrain_on(Strategy(data=8))
    x = jnp.ones((4, 7, 5))
    assert constrain(x, ("batch", "length", "act_mlp")) is x


def test_an_indivisible_activation_is_refused():
    constrain, mesh = constrain_on(Strategy(data=2, model=4))
    f = in_step(mesh, lambda x: constrain(x, ("batch", "length", "act_mlp")))
    with pytest.raises(UserError, match=r"activation .*act_mlp.*dim 2 .* is 18.*model=4") as error:
        f.lower(jax.ShapeDtypeStruct((4, 8, 18), jnp.float32))
    assert "\n" not in str(error.value)


def test_manual_and_automatic_parts_make_the_whole():
    spec = P(("stage", "model"), "data", "model", None)
    assert manual_part(spec) == P("stage", "data", None, None)
    assert automatic_part(spec) == P("model", None, "model", None)


def test_divisibility_by_several_axes():
    mesh = make_mesh(Strategy(stage=2, data=4))
    check_divisible((16, 3), P(("stage", "data"), None), mesh, path="x")
    with pytest.raises(UserError, match=r"x: dim 0 .* is 12, .* stage=2 x data=4.* 16"):
        check_divisible((12, 3), P(("stage", "data"), None), mesh, path="x")
