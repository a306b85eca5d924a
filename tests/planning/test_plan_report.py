"""`hj.plan`: the tables, the best strategy, and one line for every mistake."""

from __future__ import annotations

import json

import pytest
from IPython.core.formatters import DisplayFormatter

import hybrid_jax as hj
from hybrid_jax.config.model import preset
from hybrid_jax.errors import UserError

SEVEN = preset("llama2-7b")


def test_the_best_is_a_strategy_that_round_trips():
    report = hj.plan(SEVEN, "v5p:4x4x4", global_batch=128, seq_len=4096)
    assert report.fits
    assert report.best.num_devices == 64
    assert hj.Strategy.from_yaml(report.best.to_yaml()) == report.best
    fields = json.loads(report.to_json())
    assert len(fields["plans"]) == len(report.plans)
    first = fields["plans"][0]
    assert first["memory"]["total"] == report.plans[0].memory.total
    parts = [value for name, value in first["memory"].items() if name != "total"]
    assert sum(parts) == first["memory"]["total"]


def test_the_tables_say_what_and_why():
    report = hj.plan(SEVEN, "v5p:4x4x4", global_batch=128, seq_len=4096, top=3)
    text = str(report)
    assert "6.74 B parameters" in text
    assert report.best.describe() in text
    assert "over model" in text
    assert f"and {len(report.plans) - 3} layouts more" in text
    assert max(map(len, text.splitlines())) <= 130
    assert "<pre" in report._repr_html_()
    assert DisplayFormatter().format(report)[0]["text/plain"] == text


def test_nothing_fits():
    report = hj.plan(preset("llama2-70b"), "h100:8", global_batch=128, seq_len=4096)
    assert not report.fits
    assert "nothing fits" in str(report)
    with pytest.raises(UserError, match=r"needs .* of 71.2 GiB.*such devices would do") as error:
        report.best  # noqa: B018
    assert "\n" not in str(error.value)
    enough = report.remedy.split()[0]
    assert hj.plan(preset("llama2-70b"), f"h100:{enough}", global_batch=128, seq_len=4096).fits


def test_a_decoder_and_a_mesh():
    model = hj.models.Decoder(hj.models.preset("nano"))
    mesh = hj.make_mesh(hj.Strategy(data=8))
    assert hj.plan(model, mesh, global_batch=16, seq_len=64).best.num_devices == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "llama2-7b"}, "needs a DecoderConfig or a Decoder, not str"),
        ({"devices": "h300:8"}, "unknown chip 'h300'"),
        ({"global_batch": 0}, "global_batch=0 must be a whole number, at least 1"),
        ({"seq_len": 8192}, "seq_len=8192 must be at most the model's max_length=4096"),
        ({"optimizer": "adam"}, "optimizer=.adam. must be one of"),
        ({"stages": 4}, "plan cannot fix 'stages'.*Did you mean 'stage'"),
        ({"stage": 0}, "stage=0 must be a whole number"),
        ({"stage": 5}, "no layout of 8 devices divides.*with stage=5"),
        ({"model": 3}, "no layout of 8 devices divides.*with model=3"),
        ({"top": 0}, "top=0"),
    ],
)
def test_mistakes(changes, message):
    given = {"config": SEVEN, "devices": "h200:8", "global_batch": 128, "seq_len": 4096} | changes
    with pytest.raises(UserError, match=message) as error:
        hj.plan(given.pop("config"), **given)
    assert "\n" not in str(error.value)
