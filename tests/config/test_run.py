"""Sections that do not fit each other are refused before any device is touched."""

import pytest

from hybrid_jax.config.data import DataConfig, WeightedSource
from hybrid_jax.config.model import preset
from hybrid_jax.config.optimizer import OptimizerConfig
from hybrid_jax.config.run import RunConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.config.train import TrainConfig
from hybrid_jax.errors import UserError


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"cpu_devices": 4, "strategy": Strategy(data=2, model=4)},
            "cpu_devices=4 must be the product of the strategy's axes, data=2 x model=4: set "
            "cpu_devices=8, or change an axis.",
        ),
        ({"cpu_devices": 0}, "cpu_devices=0 must be a whole number, at least 1."),
        (
            {"strategy": Strategy(stage=5, microbatches=4)},
            "model.num_layers=4 leaves stages without a layer: stage=5 x chunks=1 needs at least 5 "
            "layers; add layers, or use fewer stages or chunks.",
        ),
        (
            {"strategy": Strategy(model=8)},
            "model.num_heads=4 must be a multiple of strategy.model=8, which splits heads: use 8, "
            "or another model axis.",
        ),
        (
            {"strategy": Strategy(model=4), "model": preset("nano", num_kv_heads=2)},
            "model.num_kv_heads=2 must be a multiple of strategy.model=4, which splits heads: use "
            "4, or another model axis.",
        ),
        (
            {"strategy": Strategy(data=4, microbatches=3), "data": DataConfig(global_batch=32)},
            "data.global_batch=32 must be a multiple of 12 (4 data shards x "
            "strategy.microbatches=3): use 24 or 36, or change strategy.microbatches.",
        ),
        (
            {"data": DataConfig(seq_len=512)},
            "data.seq_len=512 must be at most model.max_length=256: shorten the one or raise the "
            "other.",
        ),
        (
            {"train": TrainConfig(sample_tokens=255, sample_prompt="In")},
            "train.sample_tokens=255 and the prompt make 257 tokens, but model.max_length=256: set "
            "train.sample_tokens to at most 254.",
        ),
        (
            {"train": TrainConfig(sample_tokens=1, sample_prompt="")},
            "train.sample_prompt='' must not be empty: give the text that the sample begins with, "
            "or set train.sample_tokens=0.",
        ),
        (
            {"model": preset("nano", vocab_size=100)},
            "model.vocab_size=100 must be at least 256: 'kjv' is text, read as bytes.",
        ),
        (
            {"optimizer": OptimizerConfig(warmup_steps=5), "train": TrainConfig(steps=5)},
            "optimizer.warmup_steps=5 must be less than train.steps=5: shorten the warm-up or "
            "train longer.",
        ),
    ],
)
def test_sections_that_do_not_fit(sections, message):
    with pytest.raises(UserError) as error:
        RunConfig(**sections)
    assert str(error.value) == message


def test_own_rules_may_leave_heads_whole():
    rules = (("kv_heads", None), ("act_kv_heads", None))
    model = preset("nano", num_kv_heads=2)
    assert RunConfig(model=model, strategy=Strategy(model=4, rules=rules)).model == model


@pytest.mark.parametrize(
    ("section", "field", "value", "constraint"),
    [
        (OptimizerConfig, "name", "adam", "must be one of adamw, adafactor, lion, muon."),
        (OptimizerConfig, "learning_rate", 0.0, "must lie in (0, inf)."),
        (OptimizerConfig, "learning_rate", float("nan"), "must lie in (0, inf)."),
        (OptimizerConfig, "learning_rate", float("inf"), "must lie in (0, inf)."),
        (OptimizerConfig, "clip_norm", 0.0, "must lie in (0, inf)."),
        (OptimizerConfig, "end_fraction", 1.5, "must lie in [0, 1]."),
        (OptimizerConfig, "warmup_steps", -1, "must be a whole number, at least 0."),
        (DataConfig, "validation_fraction", 1.0, "must lie in (0, 1)."),
        (DataConfig, "seed", -1, "must be a whole number, at least 0."),
        (TrainConfig, "eval_every", 0, "must be a whole number, at least 1."),
        (TrainConfig, "sample_temperature", -1.0, "must lie in [0, inf)."),
    ],
)
def test_a_number_out_of_range(section, field, value, constraint):
    with pytest.raises(UserError) as error:
        section(**{field: value})
    name = section.__name__.removesuffix("Config").lower()
    assert str(error.value).startswith(f"{name}.{field}={value!r} {constraint}")


def test_a_folder_is_not_read_as_bytes(tmp_path):
    data = DataConfig(source=str(tmp_path))
    assert RunConfig(model=preset("nano", vocab_size=100), data=data).data.source == str(tmp_path)


def test_a_mixture_or_one_source():
    assert DataConfig().mixture == (WeightedSource("kjv", 1.0),)
    assert DataConfig(source="x.txt").describe() == "x.txt"
    both = (WeightedSource("kjv", 0.25), WeightedSource("x.txt", 0.75))
    assert DataConfig(sources=both).mixture == both


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"source": "kjv", "sources": (WeightedSource("x", 1.0),)},
            "data.source='kjv' and data.sources must not both be given: set one of them to null.",
        ),
        ({"sources": ()}, "data.sources=[] must have an entry: add one, or set it to null."),
        (
            {"sources": (WeightedSource("x", 2.0), WeightedSource("y", 6.0))},
            "data.sources: weights 2, 6 sum to 8, but must sum to 1: use 0.25, 0.75.",
        ),
        (
            {"sources": (WeightedSource("x", 0.999998),)},
            "data.sources: weights 0.999998 sum to 0.999998, but must sum to 1: use 1.",
        ),
        (
            {"sources": (WeightedSource("x", 0.0), WeightedSource("y", 1.0))},
            "data.sources: weights 0, 1: 0 must be at least 1e-6; leave a source out instead.",
        ),
    ],
)
def test_sources_that_do_not_fit(options, message):
    with pytest.raises(UserError) as error:
        DataConfig(**options)
    assert str(error.value) == message


def test_weights_may_be_rounded():
    DataConfig(sources=tuple(WeightedSource(name, 0.3333333) for name in "abc"))
