"""Every field of every section: what it holds, whoever sets it, and what it refuses in one line."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest

from hybrid_jax.config.checkpoint import CheckpointConfig
from hybrid_jax.config.data import DataConfig, WeightedSource
from hybrid_jax.config.draft import Draft
from hybrid_jax.config.fields import base_types
from hybrid_jax.config.load import field_types
from hybrid_jax.config.model import DecoderConfig, preset
from hybrid_jax.config.optimizer import OptimizerConfig
from hybrid_jax.config.run import RunConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.config.train import TrainConfig
from hybrid_jax.errors import UserError

MAKERS = {
    "model": lambda **fields: preset("nano", **fields),
    "strategy": Strategy,
    "optimizer": OptimizerConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "checkpoint": CheckpointConfig,
}
NOT_FIELDS = ("model.preset", "model.style", "strategy.auto", "cpu_devices")
FIELDS = {name: base_types(hint) for name, hint in field_types().items() if name not in NOT_FIELDS}
WHOLE = [name for name, bases in FIELDS.items() if int in bases and float not in bases]
NUMBERS = [name for name, bases in FIELDS.items() if {int, float} & {*bases}]


def make(name: str, value):
    """The section with this field set."""
    section, _, field = name.partition(".")
    return MAKERS[section](**{field: value})


def complaint(name: str, value) -> str:
    with pytest.raises(UserError) as error:
        make(name, value)
    message = str(error.value)
    assert message.startswith(name)
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_there_are_numbers_in_every_section():
    assert {name.partition(".")[0] for name in NUMBERS} == MAKERS.keys()


WRONG = [
    True,
    False,
    math.nan,
    math.inf,
    -math.inf,
    10**5000,
    -(10**5000),
    -(2**31) - 1,
    np.float64("nan"),
    np.float32("inf"),
    "4",
    b"4",
    "",
    [],
    {},
    {4},
    (4,),
    np.array(4),
    np.array([4, 4]),
    np.bool_(True),
    1j,
    object(),
    int,
]


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_takes_what_is_none(name):
    for value in WRONG:
        complaint(name, value)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_whole_and_fit_their_devices(name):
    for value in (2.0, 2.5, np.float64(2), Fraction(2), -1, 10**23, np.uint64(2**63)):
        complaint(name, value)
    if name not in ("train.seed", "data.seed"):
        assert "at most 2147483647" in complaint(name, 2**31)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy_become_those_of_python(name):
    kinds = (np.int64, np.int32, np.uint32) if name in WHOLE else (np.float64, np.float32)
    section, _, field = name.partition(".")
    default = getattr(MAKERS[section](), field)
    for kind in kinds:
        value = kind(1 if default in (None, "auto") else default)
        stored = getattr(make(name, value), field)
        assert type(stored) is (int if name in WHOLE else float)
        assert stored == value


@pytest.mark.parametrize(
    ("name", "largest", "why"),
    [
        ("train.steps", 2**31 - 1, "the step of a state is int32"),
        ("train.seed", 2**32 - 1, "jax.random.key drops higher bits, where x64 is off"),
        ("data.seed", 2**63 - 1, "as numpy.random.SeedSequence takes it, in 64 bits"),
    ],
)
def test_the_largest_numbers(name, largest, why):
    assert getattr(make(name, largest), name.partition(".")[2]) == largest, why
    assert complaint(name, largest + 1) == (
        f"{name}={largest + 1} must be a whole number, at most {largest}."
    )


def test_the_largest_seed_is_the_largest_that_jax_tells_apart():
    import jax

    data = [jax.random.key_data(jax.random.key(seed)).tolist() for seed in (0, 2**32 - 1, 2**32)]
    assert data[0] != data[1]
    assert data[0] == data[2]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.norm_eps", -1, "model.norm_eps=-1 must lie in (0, 1]."),
        ("model.norm_eps", 0, "model.norm_eps=0 must lie in (0, 1]."),
        ("model.rope_theta", 0.5, "model.rope_theta=0.5 must lie in [1, inf)."),
        ("model.dropout", -0.1, "model.dropout=-0.1 must lie in [0, 1)."),
        (
            "model.dropout",
            1 - 1e-9,
            "model.dropout=0.999999999 must lie in [0, 1) for devices too, which take it for 1 in "
            "single precision.",
        ),
        (
            "optimizer.eps",
            1e-50,
            "optimizer.eps=1e-50 must lie in (0, inf) for devices too, which take it for 0 in "
            "single precision.",
        ),
        (
            "optimizer.learning_rate",
            1e39,
            "optimizer.learning_rate=1e+39 must lie in (0, inf) for devices too, which take it for "
            "inf in single precision.",
        ),
        ("train.stall_seconds", 1e10, "train.stall_seconds=10000000000.0 must lie in (0, 1e9]."),
        (
            "train.sample_temperature",
            1e-30,
            "train.sample_temperature=1e-30 must be 0 or at least 1e-6: nearer to 0 the logits "
            "overflow; 0 takes the most likely token.",
        ),
        ("strategy.zero", 1.0, "strategy.zero=1.0 must be one of 0, 1, 3."),
        ("strategy.skip_bubbles", 1, "strategy.skip_bubbles=1 must be true, false or null."),
        ("model.bias", 1, "model.bias=1 must be true or false."),
        ("model.norm", ["rmsnorm"], "model.norm=['rmsnorm'] must be one of layernorm, rmsnorm."),
        ("train.sample_prompt", None, "train.sample_prompt=None must be text."),
        (
            "train.sample_prompt",
            "\ud800",
            "train.sample_prompt='\\ud800' must be Unicode text: it has surrogates.",
        ),
        (
            "train.wandb_project",
            " ",
            "train.wandb_project=' ' must not be empty: give a name, or set it to null.",
        ),
        (
            "train.profile_steps",
            (1, 2.0),
            "train.profile_steps=(1, 2.0) must be a list of two whole numbers or null.",
        ),
        ("strategy.rules", 5, "strategy.rules=5 must be a preset's name, or a list of pairs"),
        ("data.sources", 5, "data.sources=5 must be a list, such as"),
        (
            "data.sources",
            (WeightedSource("a", math.nan),),
            "data.sources: weights nan: nan must be at least 1e-6; leave a source out instead.",
        ),
        (
            "data.sources",
            (WeightedSource("a", "1"),),  # pyright: ignore[reportArgumentType]
            "data.sources[0].weight='1' must be a number.",
        ),
        (
            "data.sources",
            [{"path": "a", "weight": 10**400}],
            "data.sources[0].weight=",
        ),
    ],
)
def test_refused(name, value, message):
    assert complaint(name, value).startswith(message)


@pytest.mark.parametrize("name", ["optimizer.b1", "model.dropout", "train.sample_temperature"])
def test_minus_zero_is_zero(name):
    stored = getattr(make(name, -0.0), name.partition(".")[2])
    assert math.copysign(1, stored) == 1


def test_sizes_whose_product_cannot_be_counted():
    with pytest.raises(UserError, match=r"model: its sizes make 7.84e\+19 parameters, but"):
        preset("nano", vocab_size=2**30, embed_dim=2**31 - 8)
    with pytest.raises(UserError, match=r"data.global_batch=65536 x data.seq_len=32768 must be"):
        DataConfig(global_batch=2**16, seq_len=2**15)
    with pytest.raises(UserError, match=f"its axes is {2**40} devices, but must be at most"):
        Strategy(data=2**20, model=2**20)


@pytest.mark.parametrize("value", [0, -1, 4097, 10**23, 2.0, True, "8"])
def test_virtual_devices(value):
    for cls in (RunConfig, Draft):
        with pytest.raises(UserError, match=r"^cpu_devices=.* must be a whole number"):
            cls(cpu_devices=value)


@pytest.mark.parametrize("section", ["model", "optimizer", "data", "train", "checkpoint"])
def test_a_section_is_one(section):
    for value in ({}, None, "nano", Strategy()):
        with pytest.raises(UserError, match=rf"^{section}=.* must be a \w+Config\.$"):
            RunConfig(**{section: value})


def test_a_draft_checks_the_fields_beside_auto():
    with pytest.raises(UserError, match=r"strategy\.zero=2 must be one of 0, 1, 3"):
        Draft(given={"zero": 2}, auto=True)
    assert type(Draft(given={"data": np.int64(2)}).given["data"]) is int


def test_a_preset_needs_its_name():
    for value in (None, 3, ["nano"], "x" * 10_000, {}):
        with pytest.raises(UserError, match="unknown model preset") as error:
            preset(value)  # pyright: ignore[reportArgumentType]
        assert len(str(error.value)) < 600
    with pytest.raises(UserError, match="unknown model style"):
        preset("nano", style=["llama"])  # pyright: ignore[reportArgumentType]


def test_what_is_stored_is_plain():
    """So that YAML and JSON can write it."""
    strategy = Strategy(data=np.int32(2), rules=[["embed", ["data"]]])  # pyright: ignore
    assert Strategy.from_yaml(strategy.to_yaml()) == strategy
    config = DecoderConfig(*(np.int64(size) for size in (8, 8, 16, 8, 8, 8)))  # pyright: ignore
    assert all(type(size) is not np.int64 for size in dataclasses.astuple(config))
