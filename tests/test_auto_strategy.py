"""`strategy: auto`: the planner lays a run over the devices at hand."""

from pathlib import Path

import jax
import pytest

from hybrid_jax.cli import main
from hybrid_jax.config.load import load_config, load_draft
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.errors import UserError
from hybrid_jax.hardware.cluster import Cluster
from hybrid_jax.run import build_train_step, lay_out, plan_draft

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


@pytest.fixture
def write(tmp_path):
    def write_config(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(f"cpu_devices: 8\ndata: {{global_batch: 16, seq_len: 32}}\n{text}")
        return path

    return write_config


@pytest.mark.parametrize("text", ["strategy: auto", "strategy: {auto: true}"])
def test_the_planners_best_is_taken(write, text):
    draft = load_draft(write(text))
    assert draft.auto and not draft.given
    config = lay_out(draft)
    assert config.strategy == plan_draft(draft).best
    assert config.strategy.num_devices == 8
    assert lay_out(draft) == config  # a run that is started again keeps its layout


def test_fields_beside_it_are_kept(write):
    path = write("strategy: {auto: true, stage: 4, remat: dots, precision: f32}")
    strategy = lay_out(load_draft(path)).strategy
    assert (strategy.stage, strategy.remat, strategy.precision) == (4, "dots", "f32")


def test_an_override_drops_the_files_layout_but_not_its_precision():
    draft = load_draft(QUICKSTART, ["strategy=auto", "strategy.zero=3"])
    assert (draft.auto, dict(draft.given)) == (True, {"precision": "f32", "zero": 3})
    assert not load_draft(QUICKSTART, ["strategy=auto", "strategy.auto=false"]).auto


def test_a_file_that_says_its_strategy_is_not_planned():
    draft = load_draft(QUICKSTART)
    assert not draft.auto
    assert lay_out(draft) == load_config(QUICKSTART)


def test_the_step_of_a_planned_layout_is_built(write):
    config = lay_out(load_draft(write("strategy: {auto: true, model: 2, stage: 2}")))
    assert build_train_step(config).mesh.shape["stage"] == 2


def test_load_config_has_no_devices_to_plan_for(write):
    with pytest.raises(UserError, match="strategy: auto needs devices"):
        load_config(write("strategy: auto"))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("{auto: true, stage: 3}", "no layout of 8 devices divides 4 layers"),
        ("{auto: true, skip_bubbles: true}", "plan cannot fix 'skip_bubbles'"),
        ("{auto: perhaps}", "strategy.auto='perhaps' must be true or false"),
        ("automatic", "such as strategy.replica, or auto."),
    ],
)
def test_one_line_for_a_mistake(write, capsys, strategy, message):
    assert main(["inspect", str(write(f"strategy: {strategy}"))]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err and printed.err.count("\n") == 1


def test_an_override_that_is_nearly_right(capsys):
    assert main(["train", str(QUICKSTART), "strategy=automatic"]) == 2
    assert "or strategy=auto to have it planned" in capsys.readouterr().err


def test_devices_at_hand_are_a_cluster():
    assert Cluster.of(jax.devices()).describe() == "cpu:8"


def test_the_table_for_the_devices_at_hand(write, capsys):
    assert main(["plan", str(write("strategy: {auto: true, stage: 2}"))]) == 0
    printed = capsys.readouterr().out
    table, _, yaml_text = printed.partition("\nreplica:")
    assert "8 x cpu" in table and "stage=2" in table and "data=8" not in table
    assert Strategy.from_yaml("replica:" + yaml_text).stage == 2


def test_too_little_memory_is_told_with_the_nearest_miss(write, capsys):
    assert main(["plan", str(write("strategy: auto")), "--memory-gib", "0.001"]) == 2
    printed = capsys.readouterr()
    assert "nothing fits on cpu:8" in printed.err and printed.err.count("\n") == 1
    assert main(["plan", str(write("strategy: auto")), "--memory-gib", "0"]) == 2
    assert "memory_gib=0 must be above 0" in capsys.readouterr().err
