"""Where each parameter lives: rules first, then the dim that ZeRO splits."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from hybrid_jax import Strategy, make_mesh
from hybrid_jax.errors import UserError
from hybrid_jax.sharding.placement import Placement, path_name, place_param
from hybrid_jax.sharding.rules import resolve_rules

CUBE = Strategy(stage=2, data=2, model=2)
KERNEL = ("layers", "embed", "mlp")


def place(shape, names, strategy=CUBE, zero=1, rules=None):
    devices = jax.devices()[: strategy.num_devices]
    mesh = make_mesh(strategy, devices)
    return place_param(shape, names, resolve_rules(rules), mesh, zero=zero, path="here")


@pytest.mark.parametrize(
    ("shape", "names", "spec", "zero_dim", "zero_axes"),
    [
        # A block kernel: stage and model from the rules, data on the free dim.
        ((4, 16, 32), KERNEL, P("stage", "data", "model"), 1, ("data",)),
        # The largest free dim that divides, not the first.
        (
            (4, 6, 32, 16),
            ("layers", "embed", "head_dim", "heads"),
            P("stage", None, "data", "model"),
            2,
            ("data",),
        ),
        (
            (4, 6, 33, 16),
            ("layers", "embed", "head_dim", "heads"),
            P("stage", "data", None, "model"),
            1,
            ("data",),
        ),
        # Every stage holds the embedding: for it, stages are data groups too.
        ((64, 16), ("vocab", "embed"), P("model", ("stage", "data")), 1, ("stage", "data")),
        # 6 does not divide by stage x data, but by data.
        ((64, 6), ("vocab", "embed"), P("model", "data"), 1, ("data",)),
        # Nothing divides: whole.
        ((64, 5), ("vocab", "embed"), P("model", None), None, ()),
        # A block's vector of which no dim is free.
        ((4, 32), ("layers", "mlp"), P("stage", "model"), None, ()),
        # Layers are never split over data, even where nothing else is free.
        ((8, 3), ("layers", "embed"), P("stage", None), None, ()),
    ],
)
def test_zero_splits_the_largest_free_dim(shape, names, spec, zero_dim, zero_axes):
    expected = Placement(spec, zero_dim, zero_axes)
    assert place(shape, names, zero=1) == expected
    assert place(shape, names, zero=3) == expected


def test_zero_0_keeps_parameters_whole_on_data():
    assert place((4, 16, 32), KERNEL, zero=0) == Placement(P("stage", None, "model"))


def test_an_axis_of_one_device_counts_as_free():
    placement = place((4, 16, 32), KERNEL, strategy=Strategy(data=4))
    assert placement == Placement(P("stage", None, "data"), 2, ("data",))


def test_without_data_groups_the_stages_split_what_they_all_hold():
    strategy = Strategy(stage=4, model=2)
    table = place((64, 16), ("vocab", "embed"), strategy)
    assert table == Placement(P("model", "stage"), 1, ("stage",))
    assert place((4, 16, 32), KERNEL, strategy) == Placement(P("stage", None, "model"))


def test_a_rule_chooses_the_dim_that_zero_splits():
    rules = [("mlp", None), ("embed", "data")]
    placement = place((4, 16, 32), KERNEL, rules=rules)
    assert placement == Placement(P("stage", "data", None), 1, ("data",))


def test_a_rule_for_data_needs_zero():
    with pytest.raises(UserError, match="here: a rule puts 'embed' on 'data', but zero=0"):
        place((4, 16, 32), KERNEL, rules="megatron+fsdp", zero=0)


@pytest.mark.parametrize(
    ("names", "rule", "message"),
    [
        (KERNEL, ("embed", "replica"), "puts 'embed' on 'replica'.*model or data"),
        (KERNEL, ("embed", "context"), "puts 'embed' on 'context'.*model or data"),
        (("embed", "mlp", None), ("mlp", "stage"), "puts 'mlp' on 'stage'.*model or data"),
        (KERNEL, ("layers", "data"), "puts 'layers' on 'data'.*split over stage"),
    ],
)
def test_a_parameter_on_a_forbidden_axis(names, rule, message):
    with pytest.raises(UserError, match=message):
        place((4, 16, 32), names, rules=[rule])


def test_an_indivisible_dim_is_refused():
    with pytest.raises(UserError, match=r"here: dim 2 of shape \(4, 16, 33\) is 33.*model=2"):
        place((4, 16, 33), KERNEL)
    with pytest.raises(UserError, match=r"here: dim 0 of shape \(3, 16, 32\) is 3.*stage=2"):
        place((3, 16, 32), KERNEL)


def test_a_rank_mismatch_names_the_parameter():
    with pytest.raises(UserError, match=r"here: 3 logical axes .* for shape \(4, 16\): give one"):
        place((4, 16), KERNEL)


def test_path_name():
    tree = {"blocks": {"attention": {"q": 1}}}
    [(path, _)] = jax.tree_util.tree_leaves_with_path(tree)
    assert path_name(path) == "blocks/attention/q"


def test_data_cannot_share_a_dim_with_model():
    rules = [("mlp", ("data", "model"))]
    with pytest.raises(UserError, match=r"^here: .*'mlp' on \('data', 'model'\)"):
        place((4, 16, 32), KERNEL, rules=rules)
