"""Every layout computes what one device computes: the loss and every gradient."""

from itertools import combinations, product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LENGTH, decoder, plain_batch, ragged_batch

from hybrid_jax import Strategy, check_parity
from hybrid_jax.models import Decoder
from hybrid_jax.parity import LayoutParity, ParityReport


class Layout(NamedTuple):
    """One row of the table below: the mesh of 8 devices, the model, and all other choices."""

    stage: int
    data: int
    model: int
    style: str
    schedule: str
    zero: int
    remat: str
    rules: str
    skip_bubbles: bool

    def strategy(self) -> Strategy:
        chunks = 2 if self.schedule == "interleaved" else 1
        rules = REPEAT_KEYS if (self.style, self.model) == ("llama", 8) else self.rules
        fields = {**self._asdict(), "rules": rules, "chunks": chunks}
        del fields["style"]
        return Strategy(**fields, microbatches=4, precision="f32")


REPEAT_KEYS = (("kv_heads", None), ("act_kv_heads", None))
"""For four key heads on model=8, which does not divide them."""

# Every factorisation of 8 with both styles of model. The other choices are spread so that every
# pair of them occurs (`test_every_pair_of_choices_occurs`).
LAYOUTS = [
    Layout(1, 1, 8, "gpt2", "gpipe", 1, "dots", "megatron+sp", False),
    Layout(1, 1, 8, "llama", "1f1b", 0, "dots", "megatron", True),
    Layout(1, 2, 4, "gpt2", "1f1b", 1, "none", "megatron+sp+fsdp", True),
    Layout(1, 2, 4, "llama", "gpipe", 1, "layer", "megatron+fsdp", True),
    Layout(1, 4, 2, "gpt2", "1f1b", 3, "none", "megatron+sp", True),
    Layout(1, 4, 2, "llama", "gpipe", 3, "layer", "megatron+sp+fsdp", False),
    Layout(1, 8, 1, "gpt2", "gpipe", 3, "dots", "megatron+fsdp", True),
    Layout(1, 8, 1, "llama", "1f1b", 3, "stage", "megatron+fsdp", False),
    Layout(2, 1, 4, "gpt2", "interleaved", 3, "layer", "megatron", True),
    Layout(2, 1, 4, "llama", "1f1b", 0, "layer", "megatron+sp", False),
    Layout(2, 2, 2, "gpt2", "interleaved", 1, "dots", "megatron+sp+fsdp", False),
    Layout(2, 2, 2, "llama", "1f1b", 1, "stage", "megatron+sp+fsdp", False),
    Layout(2, 4, 1, "gpt2", "interleaved", 0, "none", "megatron", False),
    Layout(2, 4, 1, "llama", "interleaved", 1, "none", "megatron+fsdp", True),
    Layout(4, 1, 2, "gpt2", "interleaved", 3, "none", "megatron", False),
    Layout(4, 1, 2, "llama", "interleaved", 0, "stage", "megatron+sp", True),
    Layout(4, 2, 1, "gpt2", "1f1b", 1, "stage", "megatron+fsdp", True),
    Layout(4, 2, 1, "llama", "gpipe", 1, "none", "megatron", False),
    Layout(8, 1, 1, "gpt2", "gpipe", 0, "stage", "megatron", False),
    Layout(8, 1, 1, "llama", "gpipe", 0, "layer", "megatron", True),
]


def model_for(layout: Layout) -> Decoder:
    num_layers = 8 if layout.stage >= 4 else 4
    if layout.model < 4:
        return decoder(layout.style, num_layers=num_layers)
    kv_heads = {"gpt2": 8, "llama": 4}[layout.style]
    return decoder(layout.style, num_layers=num_layers, num_heads=8, num_kv_heads=kv_heads)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout)))
def test_layout_equals_one_device(layout):
    batch = ragged_batch(max(8, 4 * layout.data))
    # What idle slots compute on is NaN, so that the smallest leak shows.
    report = check_parity(
        model_for(layout), [layout.strategy()], batch=batch, bubble_value=float("nan")
    )
    report.raise_if_different()


def test_every_pair_of_choices_occurs():
    def is_possible(choices: dict) -> bool:
        return not (choices.get("zero") == 0 and "fsdp" in choices.get("rules", ""))

    columns = ("style", "schedule", "zero", "remat", "rules", "skip_bubbles")
    rows = [layout._asdict() for layout in LAYOUTS]
    for first, second in combinations(columns, 2):
        occurring = {(row[first], row[second]) for row in rows}
        wanted = product({row[first] for row in rows}, {row[second] for row in rows})
        possible = {
            pair for pair in wanted if is_possible(dict(zip((first, second), pair, strict=True)))
        }
        assert possible - occurring == set(), (first, second)
    staged = {(row["schedule"], row["skip_bubbles"]) for row in rows if row["stage"] > 1}
    assert staged == set(product(("gpipe", "1f1b", "interleaved"), (True, False)))
    sizes = {(row["stage"], row["data"], row["model"]) for row in rows}
    assert sizes == {
        (stage, data, 8 // stage // data)
        for stage, data in product((1, 2, 4, 8), repeat=2)
        if 8 % (stage * data) == 0
    }


class BatchSplitHead(Decoder):
    """A decoder whose head may not be split along the length."""

    head_dims = ("batch",)


def batch_split_head() -> Decoder:
    return BatchSplitHead(decoder().config)


# fmt: off
ODD_SHAPES = {
    # Every data group takes part in the mean, replicas too.
    "replicas": (decoder, Strategy(replica=2, stage=2, data=2, microbatches=2), (8, LENGTH)),
    "fewer microbatches than stages":
        (decoder, Strategy(stage=4, data=2, microbatches=2), (4, LENGTH)),
    "one microbatch through eight stages, gpipe":
        (lambda: decoder("gpt2", num_layers=8), Strategy(stage=8, schedule="gpipe"), (1, LENGTH)),
    # Neither 8 tokens nor 2 rows split into 3 slices: the head pads.
    "three stages": (lambda: decoder(num_layers=6), Strategy(stage=3, data=2, microbatches=3),
                     (12, LENGTH)),
    "three stages, two chunks, two replicas":
        (lambda: decoder("gpt2", num_layers=6),
         Strategy(replica=2, stage=3, microbatches=3, schedule="interleaved", chunks=2, zero=3),
         (6, LENGTH)),
    "length not divisible by the stages": (decoder, Strategy(stage=4, model=2, microbatches=3),
                                           (3, 7)),
    "head split along the batch only": (batch_split_head, Strategy(stage=2, data=2, microbatches=2),
                                        (12, 7)),
    "head split along the batch, padded": (batch_split_head, Strategy(stage=4, microbatches=2),
                                           (2, LENGTH)),
}
# fmt: on


@pytest.mark.parametrize("case", ODD_SHAPES)
def test_odd_shapes_equal_one_device(case):
    make_model, strategy, shape = ODD_SHAPES[case]
    devices = jax.devices()[: strategy.num_devices]
    report = check_parity(make_model(), [strategy], batch=ragged_batch(*shape), devices=devices)
    report.raise_if_different()


DROPOUT_LAYOUTS = [
    Strategy(data=8),
    Strategy(stage=2, data=2, model=2, microbatches=4, schedule="interleaved", chunks=2),
    Strategy(replica=2, stage=4, microbatches=4, schedule="gpipe", zero=3, remat="none"),
    Strategy(stage=4, model=2, microbatches=2, zero=0, remat="stage", rules="megatron+sp"),
]


@pytest.mark.parametrize("strategy", DROPOUT_LAYOUTS, ids=Strategy.describe)
def test_dropout_masks_do_not_depend_on_the_layout(strategy):
    model = decoder("gpt2", num_layers=4, dropout=0.1)
    report = check_parity(model, [strategy], batch=plain_batch(8), seed=3)
    report.raise_if_different()


class HeadWithoutWeights(Decoder):
    """Wrong: given a part of the tokens, the head forgets that they have weights."""

    def head(self, shared, carry, batch, ctx):
        if carry.shape[:2] != (8, LENGTH):
            batch = {**batch, "weights": jnp.ones_like(batch["weights"])}
        return super().head(shared, carry, batch, ctx)


class BlockWithRowNumbers(Decoder):
    """Wrong: a block that knows where in its microbatch a row lies."""

    def layer(self, params, carry, batch, ctx):
        rows = jnp.arange(carry.shape[0])[:, None, None]
        return super().layer(params, carry * (1 + 0.001 * rows), batch, ctx)


@pytest.mark.parametrize(
    ("wrong", "strategy"),
    [
        (HeadWithoutWeights, Strategy(stage=2, skip_bubbles=True)),
        (BlockWithRowNumbers, Strategy(microbatches=2)),
        (BlockWithRowNumbers, Strategy(data=2)),
    ],
)
def test_a_model_that_depends_on_the_layout_is_found(wrong, strategy):
    model = wrong(decoder(num_layers=2).config)
    report = check_parity(model, [Strategy(), strategy], batch=ragged_batch(8))
    assert [row.worst[1] <= report.rtol for row in report.rows] == [True, False]
    with pytest.raises(AssertionError, match="DIFFERS.*" + strategy.describe().split()[0]):
        report.raise_if_different()


def test_nan_is_a_difference():
    row = LayoutParity(Strategy(), 0.0, {"embed/tokens": 0.5, "head/kernel": np.nan})
    report = ParityReport((row,), rtol=1.0)
    assert row.worst[0] == "head/kernel"
    assert not report
