"""Strategies: what they refuse, and their round trip through YAML."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_jax.config.strategy import MESH_AXES, Strategy
from hybrid_jax.errors import UserError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": 0}, "strategy.stage=0 must be a whole number, at least 1."),
        ({"data": 2.0}, "strategy.data=2.0 must be a whole number, at least 1."),
        ({"model": True}, "strategy.model=True must be a whole number, at least 1."),
        ({"microbatches": -1}, "strategy.microbatches=-1 must be a whole number, at least 1."),
        (
            {"schedule": "interleavd"},
            "strategy.schedule='interleavd' must be one of gpipe, 1f1b, interleaved. "
            "Did you mean 'interleaved'?",
        ),
        ({"zero": 2}, "strategy.zero=2 must be one of 0, 1, 3."),
        ({"zero": True}, "strategy.zero=True must be one of 0, 1, 3."),
        (
            {"remat": "layers"},
            "strategy.remat='layers' must be one of none, dots, layer, stage. "
            "Did you mean 'layer'?",
        ),
        ({"precision": "fp8"}, "strategy.precision='fp8' must be one of bf16, fp16, f32."),
        (
            {"skip_bubbles": "yes"},
            "strategy.skip_bubbles='yes' must be true, false or null.",
        ),
        (
            {"stage": 2, "chunks": 2},
            "strategy.chunks=2 needs schedule='interleaved', but schedule is '1f1b': set one or "
            "the other.",
        ),
        (
            {"schedule": "interleaved", "chunks": 2},
            "strategy.schedule='interleaved' needs at least 2 stages, but stage=1: raise stage, or "
            "use schedule='1f1b'.",
        ),
        (
            {"schedule": "interleaved", "stage": 2, "microbatches": 2},
            "strategy.schedule='interleaved' needs at least 2 chunks per stage, but chunks=1: "
            "raise chunks, or use schedule='1f1b'.",
        ),
        (
            {"schedule": "interleaved", "stage": 4, "chunks": 2, "microbatches": 6},
            "strategy.microbatches=6 must be a multiple of stage=4 for schedule='interleaved': use "
            "4 or 8, or schedule='1f1b', which takes any number.",
        ),
        (
            {"rules": [["embed", "modle"]]},
            "strategy.rules has ['embed', 'modle']: 'modle' is no mesh axis (replica, stage, data, "
            "context, expert, model). Did you mean 'model'?",
        ),
        (
            {"rules": [["embed"]]},
            "strategy.rules has ['embed']: each rule must be a pair [logical name, mesh axis], "
            "[logical name, [mesh axes]] or [logical name, null].",
        ),
        (
            {"rules": 3},
            "strategy.rules=3 must be a preset's name, or a list of pairs [logical name, mesh "
            "axis].",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(fields, message):
    with pytest.raises(UserError) as error:
        Strategy(**fields)
    assert str(error.value) == message


def test_fewer_microbatches_than_stages_are_no_mistake_without_chunks():
    assert Strategy(stage=4, microbatches=2).microbatches == 2


def test_axis_sizes_are_in_mesh_order():
    strategy = Strategy(model=2, stage=3, replica=5)
    assert tuple(strategy.axis_sizes) == MESH_AXES
    assert tuple(strategy.axis_sizes.values()) == (5, 3, 1, 1, 1, 2)
    assert strategy.num_devices == 30


def test_replace_checks_again():
    with pytest.raises(UserError, match="microbatches=3"):
        dataclasses.replace(
            Strategy(stage=2, chunks=2, schedule="interleaved", microbatches=4), microbatches=3
        )


rules = st.lists(
    st.tuples(
        st.text("abc_", min_size=1),
        st.none()
        | st.sampled_from(MESH_AXES)
        | st.lists(st.sampled_from(MESH_AXES), max_size=3).map(tuple),
    )
)


@given(
    sizes=st.fixed_dictionaries({axis: st.integers(1, 8) for axis in MESH_AXES}),
    microbatches=st.integers(1, 9),
    zero=st.sampled_from((0, 1, 3)),
    rules=st.none() | st.sampled_from(["megatron", "megatron+sp"]) | rules.map(tuple),
    skip_bubbles=st.none() | st.booleans(),
)
def test_yaml_round_trip(sizes, microbatches, zero, rules, skip_bubbles):
    strategy = Strategy(
        **sizes, microbatches=microbatches, zero=zero, rules=rules, skip_bubbles=skip_bubbles
    )
    again = Strategy.from_yaml(strategy.to_yaml())
    assert again == strategy
    assert hash(again) == hash(strategy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stagee: 2", "unknown field 'strategy.stagee'"),
        ("[1, 2]", "must be a mapping"),
        ("stage: x", "strategy.stage='x' must be a whole number"),
        ("stage: 2\nstage: 4", "a strategy, line 2: 'stage' stands in line 1 already"),
        ("stage: [", "a strategy is not YAML: line 1, column 9"),
        ("[" * 10_000, "a strategy, line 1: it is nested deeper than 20 levels"),
        ("1: 2", "a strategy, line 1: the key '1' must be text"),
        ("stage: 0.5", "stage=0.5 must be a whole number"),
        ("zero: 1.0", "strategy.zero=1.0 must be one of 0, 1, 3"),
        ("5", "must be a mapping of its fields, not 5"),
        ("0", "must be a mapping of its fields, not 0"),
    ],
)
def test_from_yaml_refuses(text, message):
    with pytest.raises(UserError, match=message):
        Strategy.from_yaml(text)


def test_from_yaml_of_nothing_is_the_default():
    assert Strategy.from_yaml("") == Strategy()
