"""Loading configurations: types, overrides, and one line for every mistake."""

import dataclasses
from pathlib import Path

import pytest

from hybrid_jax.config.data import WeightedSource
from hybrid_jax.config.load import field_types, load_config
from hybrid_jax.config.model import preset
from hybrid_jax.config.run import RunConfig
from hybrid_jax.config.train import TrainConfig
from hybrid_jax.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
RUNS = sorted({*CONFIGS.glob("*.yaml")} - {*CONFIGS.glob("*_strategies.yaml")})


@pytest.fixture
def write(tmp_path):
    def write_config(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write_config


def complaint(path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_every_shipped_config_loads(path):
    assert isinstance(load_config(path), RunConfig)


def test_an_empty_file_gives_the_defaults(write):
    assert load_config(write("")) == RunConfig()


def test_sections_reach_their_fields(write):
    path = write(
        """
        cpu_devices: 4
        model: {preset: gpt2-small, style: llama, num_layers: 2}
        strategy: {stage: 2, data: 2, rules: [[embed, data], [mlp, [data, model]], [vocab, null]]}
        optimizer: {name: lion, learning_rate: 3e-4, clip_norm: null}
        data: {global_batch: 8, seq_len: 64}
        train: {steps: 5, sample_prompt: "a: b"}
        """
    )
    config = load_config(path)
    assert config.cpu_devices == 4
    assert config.model == preset("gpt2-small", style="llama", num_layers=2)
    assert config.strategy.rules == (
        ("embed", "data"),
        ("mlp", ("data", "model")),
        ("vocab", None),
    )
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.clip_norm is None
    assert config.train.sample_prompt == "a: b"


def test_overrides_win_over_the_file_and_the_last_over_all(write):
    path = write("train: {steps: 5, seed: 3}")
    config = load_config(path, ["train.steps=6", "train.steps=7", "optimizer.learning_rate=3e-5"])
    assert (config.train.steps, config.train.seed) == (7, 3)
    assert config.optimizer.learning_rate == 3e-5


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.clip_norm=null", ("optimizer", "clip_norm", None)),
        ("strategy.skip_bubbles=true", ("strategy", "skip_bubbles", True)),
        ("strategy.zero=3", ("strategy", "zero", 3)),
        ("strategy.rules=megatron+sp", ("strategy", "rules", "megatron+sp")),
        ("strategy.rules=[[embed,data]]", ("strategy", "rules", (("embed", "data"),))),
        ("data.source=2024", ("data", "source", "2024")),
        (
            "data.sources=[{path: a, weight: 0.75}, {path: b, weight: 0.25}]",
            ("data", "sources", (WeightedSource("a", 0.75), WeightedSource("b", 0.25))),
        ),
        ("train.sample_prompt=x=1: [y]", ("train", "sample_prompt", "x=1: [y]")),
    ],
)
def test_overrides_are_read_by_the_type_of_their_field(write, override, expected):
    section, field, value = expected
    config = load_config(write(""), [override])
    assert getattr(getattr(config, section), field) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=4", "unknown config field 'train.stepz'. Did you mean 'train.steps'?"),
        ("stage=4", "unknown config field 'stage'. Did you mean 'strategy.stage'?"),
        (
            "optimizer.seq_len=3",
            "unknown config field 'optimizer.seq_len'. Did you mean 'data.seq_len'?",
        ),
        (
            "strateggy.stage=2",
            "unknown config field 'strateggy.stage'. Did you mean 'strategy.stage'?",
        ),
        (
            "xyz=1",
            "unknown config field 'xyz'. The sections are model, strategy, optimizer, data, train, "
            "checkpoint.",
        ),
        (
            "data.xyz=1",
            "unknown config field 'data.xyz'. The fields of 'data' are source, sources, "
            "global_batch, seq_len, seed, validation_fraction.",
        ),
        (
            "train=1",
            "unknown config field 'train'. It is a section: set one of its fields, such as "
            "train.steps.",
        ),
        (
            "train.steps",
            "'train.steps' is no override: write section.field=value, such as train.steps=100.",
        ),
        ("train.steps=many", "train.steps='many' must be a whole number, at least 1."),
        ("train.steps=2.5", "train.steps=2.5 must be a whole number, at least 1."),
        ("train.steps=", "train.steps='' must be a whole number, at least 1."),
        ("train.steps=0", "train.steps=0 must be a whole number, at least 1."),
        ("optimizer.clip_norm=x", "optimizer.clip_norm='x' must be a number or null."),
        ("optimizer.b1=1", "optimizer.b1=1 must lie in [0, 1)."),
        ("model.bias=maybe", "model.bias='maybe' must be true or false."),
        (
            "strategy.schedule=1f1d",
            "strategy.schedule='1f1d' must be one of gpipe, 1f1b, interleaved. "
            "Did you mean '1f1b'?",
        ),
        ("strategy.zero=2", "strategy.zero=2 must be one of 0, 1, 3."),
    ],
)
def test_a_wrong_override_is_told_in_one_line(write, override, message):
    assert complaint(write(""), override).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {stepz: 4}", "unknown config field 'train.stepz'. Did you mean 'train.steps'?"),
        ("train: 3", "train=3 must be a section: a mapping of its fields, such as train.steps."),
        ("train: {steps: null}", "train.steps=None must be a whole number, at least 1."),
        ("strategy: {data: yes}", "strategy.data=True must be a whole number, at least 1."),
        ("data: {source: 5}", "data.source=5 must be text or null."),
        (
            "strategy: {rules: [[embed]]}",
            "strategy.rules has ['embed']: each rule must be a pair [logical name, mesh axis], "
            "[logical name, [mesh axes]] or [logical name, null].",
        ),
        ("train: {steps: [1,\n 2]}", "train.steps=[1, 2] must be a whole number, at least 1."),
    ],
)
def test_a_wrong_field_in_a_file_is_told_in_one_line(write, text, message):
    assert complaint(write(text)) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {steps: 5}\ntrain: {steps: 6}", "line 2: 'train' stands in line 1 already"),
        ("train:\n  steps: 5\n  steps: 6", "line 3: 'steps' stands in line 2 already"),
        ("train: {steps: 5}\ntrain.steps: 6", "'train.steps' is given twice, in its section and"),
        ("strategy: auto\nstrategy.auto: false", "'strategy.auto' is given twice"),
        ("[" * 10_000, "line 1: it is nested deeper than 20 levels."),
        ("train: " + "{a: " * 10_000, "line 1: it is nested deeper than 20 levels."),
        (f"train: {{steps: {10**23}}}", "train.steps=100000000000000000000000 must be a whole"),
        (f"train: {{steps: {'1' * 100_000}}}", "is no whole number that can be read."),
        (f"train: {{seed: {2**63}}}", "train.seed=9223372036854775808 must be a whole number, at"),
        (f"data: {{seed: {2**63}}}", "data.seed=9223372036854775808 must be a whole number, at"),
        (f"cpu_devices: {2**40}", "cpu_devices=1099511627776 must be a whole number, at most 4096"),
        ("model: {norm_eps: -1}", "model.norm_eps=-1 must lie in (0, 1]."),
        ("model: {norm_eps: .nan}", "model.norm_eps=nan must lie in (0, 1]."),
        ("model: {rope_theta: .nan}", "model.rope_theta=nan must lie in [1, inf)."),
        ("model: {rope_theta: .inf}", "model.rope_theta=inf must lie in [1, inf)."),
        ("optimizer: {eps: 1e-60}", "optimizer.eps=1e-60 must lie in (0, inf) for devices too"),
        ("train: {stall_seconds: 1e300}", "train.stall_seconds=1e+300 must lie in (0, 1e9]."),
        ("train: {steps: 010}", "train.steps='010' must be a whole number, at least 1."),
        ("train: {steps: 1:30}", "train.steps='1:30' must be a whole number, at least 1."),
        ("train: {output_dir: ''}", "train.output_dir='' must not be empty: give a path."),
        ("train: {output_dir: $NO_SUCH_NAME/a}", "needs the environment variable 'NO_SUCH_NAME'"),
        ("train: {output_dir: gs://bucket/a}", "train.output_dir='gs://bucket/a' is a URL, but"),
        ("train: {output_dir: /dev/null}", "must be a folder, but '/dev/null' is none"),
        ("checkpoint: {folder: s3://bucket/a}", "checkpoint.folder='s3://bucket/a' is a URL, but"),
        ("checkpoint: {init_from: ''}", "checkpoint.init_from='' must not be empty"),
        ("data: {source: ''}", "data.source='' must not be empty"),
        ("train: {wandb_project: ' '}", "train.wandb_project=' ' must not be empty"),
        (
            'train: {sample_tokens: 4, sample_prompt: "\\uD800"}',
            "train.sample_prompt='\\ud800' must be Unicode text",
        ),
        ("1: 2", "line 1: the key '1' must be text"),
        ("train: {true: 2}", "line 1: the key 'true' must be text"),
        ("train: {null: 2}", "line 1: the key 'null' must be text"),
        ("train: {steps: 2001-99-99}", "train.steps='2001-99-99' must be a whole number"),
        ("train: {steps: !!int x}", "line 1: 'x' is no whole number that can be read."),
        ("model: {preset: {}}", "unknown model preset {}"),
        ("strategy: {stage: 1048576, data: 1048576}", "devices, but must be at most 2147483647"),
        ("data: {global_batch: 65536, seq_len: 65536}", "must be at most 2147483647 tokens"),
        ("model: {vocab_size: 2000000000, embed_dim: 2000000000}", "make a size smaller."),
    ],
)
def test_what_must_not_get_in(write, text, message):
    told = complaint(write(text))
    assert message in told
    assert len(told) < 600


def test_a_huge_file_is_not_read(write):
    assert "must have at most 1048576 characters, not" in complaint(write("#" * 2_000_000))
    assert "must have at most 1048576 characters, but is far larger" in complaint("/dev/zero")


def test_a_byte_order_mark_is_no_text(write):
    assert load_config(write("\ufefftrain: {steps: 5}")).train.steps == 5


def test_an_anchor_may_be_used_again(write):
    path = write("data: &d {seed: 3}\ntrain: {<<: *d, steps: 5}")
    assert load_config(path).train == TrainConfig(steps=5, seed=3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("=5", "unknown config field ''."),
        ("=", "unknown config field ''."),
        ("a.b=", "unknown config field 'a.b'."),
        ("tráin.steps=5", "unknown config field 'tráin.steps'. Did you mean 'train.steps'?"),
        ("train.steps=\u0665", "train.steps='\u0665' must be a whole number, at least 1."),
        ("x" * 100_000 + "=5", "unknown config field 'xxxx"),
        ("train.steps=" + "x" * 100_000, "train.steps='xxxx"),
        ("x" * 100_000, "'xxxx"),
        ("train.steps\n=5", "unknown config field 'train.steps\\n'."),
        ("optimizer.clip_norm=", "optimizer.clip_norm='' must be a number or null."),
        (
            f"train.steps={10**23}",
            "train.steps=100000000000000000000000 must be a whole number, at",
        ),
        ("data.sources=" + "[" * 10_000, "data.sources='[[[["),
        ("data.sources=&a [*a]", "data.sources='&a [*a]' must be a list"),
        (
            "train.seed=5000000000",
            "train.seed=5000000000 must be a whole number, at most 4294967295",
        ),
        ("train.output_dir=", "train.output_dir='' must not be empty"),
        ("train.output_dir=gs://bucket", "train.output_dir='gs://bucket' is a URL"),
        ("train.sample_prompt=\udcff", "train.sample_prompt='\\udcff' must be Unicode text"),
        ("strategy.zero=1.0", "strategy.zero=1.0 must be one of 0, 1, 3."),
    ],
)
def test_overrides_are_checked_alike(write, override, message):
    told = complaint(write(""), override)
    assert told.startswith(message)
    assert len(told) < 600


def test_text_is_taken_as_it_is(write):
    config = load_config(write(""), ["train.sample_prompt=null", "train.wandb_project=1e3"])
    assert (config.train.sample_prompt, config.train.wandb_project) == ("null", "1e3")
    assert load_config(write("train: {wandb_project: x}"), ["train.wandb_project=null"]) == (
        RunConfig()
    )


def test_a_mixture_is_a_list_and_gives_way_to_one_source(write):
    path = write(
        "data:\n  sources:\n    - {path: kjv, weight: 0.5}\n    - {path: b, weight: 0.5}\n"
    )
    assert load_config(path).data.describe() == "0.5 kjv + 0.5 b"
    config = load_config(path, ["data.sources=null", "data.source=kjv"])
    assert config.data.describe() == "kjv"
    assert "must not both be given" in complaint(path, "data.source=kjv")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("kjv", "data.sources='kjv' must be a list, such as [{path: kjv, weight: 0.7}, "),
        ("5", "data.sources=5 must be a list, such as "),
        ("{path: a, weight: 1}", "data.sources={'path': 'a', 'weight': 1} must be a list"),
        ("[kjv]", "data.sources[0]='kjv' must be a mapping, such as {path: kjv, weight: 0.7}."),
        (
            "[{path: a, weight: 0.5}, {path: b, wieght: 0.5}]",
            "unknown field 'wieght' in data.sources[1]: an entry has path and weight. "
            "Did you mean 'weight'?",
        ),
        ("[{path: a}]", "data.sources[0] lacks 'weight': write {path: kjv, weight: 0.7}."),
        ("[{path: 3, weight: 1}]", "data.sources[0].path=3 must be text: the path of a source."),
        ("[{path: a, weight: x}]", "data.sources[0].weight='x' must be a number."),
        ("[{path: a, weight: -1}]", "data.sources: weights -1: -1 must be at least 1e-6;"),
        ("[{path: a, weight: .nan}]", "data.sources: weights nan: nan must be at least 1e-6;"),
        ("[{path: a, weight: 0.5}]", "data.sources: weights 0.5 sum to 0.5, but must sum to 1:"),
        ("[]", "data.sources=[] must have an entry"),
    ],
)
def test_a_wrong_mixture_is_told_in_one_line(write, sources, message):
    assert complaint(write(f"data: {{sources: {sources}}}")).startswith(message)
    assert complaint(write(""), f"data.sources={sources}").startswith(message)


def test_a_mixture_that_is_no_yaml(write):
    assert complaint(write(""), "data.sources=[{").startswith("data.sources='[{' must be a list")


def test_a_broken_file_is_told_with_its_line(write):
    path = write("train:\n  steps: 3\n bad: 1\n")
    assert complaint(path).startswith(f"config file '{path}' is not YAML: line 3, column 2:")


def test_a_file_must_be_a_mapping(write):
    path = write("- 1")
    assert complaint(path) == (
        f"config file '{path}' must be a mapping of sections (strategy, optimizer, data, train, "
        "checkpoint, model), not [1]."
    )


def test_a_missing_file_is_told_with_its_neighbour(write):
    path = write("")
    wrong = path.with_name("rnu.yaml")
    assert complaint(wrong) == (
        f"no config file '{wrong}': give the path of a YAML file. Did you mean '{path}'?"
    )


def test_a_folder_or_binary_file_is_no_config(tmp_path):
    assert complaint(tmp_path).startswith(f"cannot read config file '{tmp_path}'")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read config file" in complaint(tmp_path / "binary.yaml")


def test_every_field_can_be_set(write):
    """No field of a section is missing from the names that a file may use."""
    config = RunConfig()
    for section in ("model", "strategy", "optimizer", "data", "train"):
        for field in dataclasses.fields(getattr(config, section)):
            assert f"{section}.{field.name}" in field_types()
