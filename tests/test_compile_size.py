"""What is compiled does not grow with layers or microbatches; 1F1B's memory does not either."""

import jax
import optax
import pytest

from hybrid_jax import Strategy, make_mesh, make_train_step
from hybrid_jax.models import Decoder, preset

LENGTH = 64


def compiled(num_layers=8, microbatches=8, **fields):
    """A pipeline of two stages with one example in each microbatch."""
    strategy = Strategy(stage=2, microbatches=microbatches, precision="f32", **fields)
    config = preset("nano", num_layers=num_layers, vocab_size=64, embed_dim=64, mlp_dim=128)
    train = make_train_step(
        Decoder(config), optax.adamw(1e-3), strategy, make_mesh(strategy, jax.devices()[:2])
    )
    return train.lower((microbatches, LENGTH)).compile()


@pytest.fixture(scope="module")
def small():
    return compiled()


def text_size(program) -> int:
    return len(program.as_text())


def temp_bytes(program) -> int:
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("sizes", [{"num_layers": 24}, {"microbatches": 32}])
def test_program_does_not_grow(small, sizes):
    assert text_size(compiled(**sizes)) == pytest.approx(text_size(small), rel=0.05)


def test_interleaved_program_does_not_grow():
    fields = {"schedule": "interleaved", "chunks": 2}
    few, many = compiled(**fields), compiled(microbatches=32, num_layers=24, **fields)
    assert text_size(many) == pytest.approx(text_size(few), rel=0.05)


def test_1f1b_memory_does_not_grow_with_microbatches_but_gpipe_memory_does(small):
    one_f_one_b = temp_bytes(small), temp_bytes(compiled(microbatches=32))
    gpipe = [temp_bytes(compiled(schedule="gpipe", microbatches=m)) for m in (8, 32)]
    print(f"temporary bytes with M = 8, 32: 1f1b {one_f_one_b}, gpipe {gpipe}")
    assert one_f_one_b[1] <= 1.02 * one_f_one_b[0]
    assert gpipe[1] > 1.5 * gpipe[0]
