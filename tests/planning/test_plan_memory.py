"""The memory model: tiny cases by hand, what must grow with what."""

from __future__ import annotations

import dataclasses

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hybrid_jax.config.model import preset
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.planning.memory import memory

SMALL = preset("llama2-7b", num_layers=8)


def test_one_device_by_hand():
    config = preset(
        "nano", num_layers=2, embed_dim=8, num_heads=2, mlp_dim=16, vocab_size=10, max_length=4
    )
    kernels = 2 * (4 * 8 * 8 + 3 * 8 * 16)
    params = kernels + 2 * 2 * 8 + 8 + 2 * 10 * 8
    got = memory(config, Strategy(remat="layer"), 3, 4, platform="gpu")
    assert got.parameters == 4 * params
    assert got.optimizer == 8 * params
    assert got.compute_copy == 2 * params
    assert got.residuals == 2 * (3 * 4 * 8 * 2)  # the input of each of two layers, bf16
    assert got.boundary == 0
    assert got.gradients == 2 * (kernels + 2 * 2 * 8) + 2 * 10 * 8  # one tick: bf16, not summed
    one_layer = 2 * (kernels // 2 + 2 * 8)
    assert got.slot == one_layer + 3 * (3 * 4 * 16 * 2) + 3 * (3 * 4 * 8 * 2)
    assert got.batch == 3 * 4 * 12


def test_the_head_or_the_embedding_may_need_most():
    config = preset("nano", num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8, vocab_size=9000)
    many_tokens = memory(config, Strategy(microbatches=2), 64, 16, platform="gpu")
    assert many_tokens.slot == 32 * 16 * 9000 * (4 + 2)  # f32 logits, their bf16 gradient
    few_tokens = memory(config, Strategy(microbatches=2), 2, 1, platform="gpu")
    assert few_tokens.slot == 2 * 9000 * 8 * 2  # a bf16 table of zeros, and one of sums


@settings(max_examples=60, deadline=None)
@given(
    stage=st.sampled_from([1, 2, 4]),
    data=st.sampled_from([1, 2, 4]),
    model=st.sampled_from([1, 2, 4]),
    microbatches=st.sampled_from([1, 2, 4, 8]),
    zero=st.sampled_from([0, 1, 3]),
    remat=st.sampled_from(["none", "dots", "layer", "stage"]),
)
def test_more_work_never_needs_less(stage, data, model, microbatches, zero, remat):
    strategy = Strategy(
        stage=stage, data=data, model=model, microbatches=microbatches, zero=zero, remat=remat
    )
    batch = data * microbatches
    whole = memory(SMALL, strategy, batch, 512).total
    assert memory(SMALL, strategy, 2 * batch, 512).total > whole
    assert memory(SMALL, strategy, batch, 1024).total > whole
    deeper = dataclasses.replace(SMALL, num_layers=16)
    assert memory(deeper, strategy, batch, 512).total > whole
    assert memory(SMALL, strategy, batch, 512, "lion").total < whole


@settings(max_examples=60, deadline=None)
@given(
    stage=st.sampled_from([1, 2, 4]),
    model=st.sampled_from([1, 2, 4]),
    microbatches=st.sampled_from([2, 4, 8]),
    zero=st.sampled_from([1, 3]),
)
def test_what_saves_memory_does(stage, model, microbatches, zero):
    strategy = Strategy(stage=stage, data=4, model=model, microbatches=microbatches, zero=zero)
    batch = 4 * microbatches * 2

    def total(**fields):
        return memory(SMALL, dataclasses.replace(strategy, **fields), batch, 1024).total

    assert total(remat="layer") < total(remat="dots") < total(remat="none")
    assert total(zero=3) <= total(zero=1) < total(zero=0)
    assume(model > 1)
    assert total(rules="megatron+sp") < total()


def test_1f1b_does_not_grow_with_microbatches():
    def at(name, microbatches):
        strategy = Strategy(stage=4, microbatches=microbatches, schedule=name)
        return memory(SMALL, strategy, microbatches, 512)

    assert at("1f1b", 64).residuals == at("1f1b", 8).residuals
    assert at("gpipe", 64).residuals > 4 * at("gpipe", 8).residuals
