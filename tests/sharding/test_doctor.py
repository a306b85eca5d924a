"""What the doctor says about the sharding of whole parameter trees."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from hybrid_jax import Strategy, make_mesh
from hybrid_jax.errors import UserError
from hybrid_jax.sharding.doctor import examine, place_params
from hybrid_jax.sharding.rules import resolve_rules

AXES = {
    "blocks": {"down": ("layers", "mlp", "embed"), "up": ("layers", "embed", "mlp")},
    "embed": ("vocab", "embed"),
}


def shapes(embed=16, mlp=32, vocab=64):
    def shape(*dims):
        return jax.ShapeDtypeStruct(dims, jnp.float32)

    return {
        "blocks": {"down": shape(4, mlp, embed), "up": shape(4, embed, mlp)},
        "embed": shape(vocab, embed),
    }


def examined(sizes, rules=None, strategy=None, zero=1):
    strategy = strategy or Strategy(stage=2, data=2, model=2)
    return examine(sizes, AXES, resolve_rules(rules), make_mesh(strategy), zero=zero)


def test_a_healthy_tree_is_placed_leaf_by_leaf():
    placements, findings = examined(shapes())
    assert findings == ()
    assert placements["blocks"]["up"].spec == P("stage", "data", "model")
    assert placements["blocks"]["down"].spec == P("stage", "model", "data")
    assert placements["embed"].spec == P("model", ("stage", "data"))


def test_every_error_is_found_and_the_first_is_raised():
    sizes = shapes(mlp=33, vocab=65)
    placements, findings = examined(sizes)
    assert placements is None
    assert [(f.kind, f.path) for f in findings] == [
        ("error", "blocks/down"),
        ("error", "blocks/up"),
        ("error", "embed"),
    ]
    mesh = make_mesh(Strategy(stage=2, data=2, model=2))
    with pytest.raises(
        UserError, match=r"^blocks/down: dim 1 .* is 33.*Also wrong: blocks/up, embed"
    ) as error:
        place_params(sizes, AXES, resolve_rules(None), mesh, zero=1)
    assert "\n" not in str(error.value)


def test_a_rule_that_nothing_uses_is_an_error_with_a_hint():
    placements, (finding,) = examined(shapes(), rules=[("mpl", "model")])
    assert placements is None
    assert finding.kind == "error"
    assert "logical axis 'mpl'. Did you mean 'mlp'?" in finding.message


@pytest.mark.parametrize(("name", "over"), [("layers", "stage"), ("batch", "replica, data")])
def test_what_the_step_splits_by_hand_takes_no_rule(name, over):
    _, findings = examined(shapes(), rules=[(name, None)])
    assert f"the step splits {name!r} over {over}" in findings[0].message


def test_presets_may_have_rules_that_a_model_does_not_use():
    assert examined(shapes(), rules="megatron+sp+fsdp")[1] == ()


def test_a_large_parameter_that_is_whole_is_worth_a_word():
    # Neither dim divides by data=8.
    sizes = {"table": jax.ShapeDtypeStruct((2**18 + 1, 3), jnp.float32)}
    mesh = make_mesh(Strategy(data=8))
    axes = {"table": ("positions", "embed")}
    placements, (finding,) = examine(sizes, axes, resolve_rules(None), mesh, zero=1)
    assert finding.kind == "warning"
    assert "(262145, 3) (3.0 MiB) is whole on every device of data=8" in finding.message
    assert placements["table"].spec == P(None, None)
    assert examine(sizes, axes, resolve_rules(None), mesh, zero=0)[1] == ()
