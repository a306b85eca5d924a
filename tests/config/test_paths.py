"""Paths as users write them: expanded once, at one door, or refused in one line."""

from pathlib import Path

import pytest

from hybrid_jax.config.checkpoint import CheckpointConfig
from hybrid_jax.config.data import DataConfig, WeightedSource
from hybrid_jax.config.load import load_config
from hybrid_jax.config.paths import folder_text, local_path, local_text
from hybrid_jax.config.run import RunConfig
from hybrid_jax.config.train import TrainConfig
from hybrid_jax.errors import UserError

HOME, WORK = "/home/ada", "/work of ada"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("HOME", HOME)
    monkeypatch.setenv("WORK", WORK)
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("BUCKET", "gs://bucket")
    monkeypatch.setenv("DOLLAR", "a$WORK")
    monkeypatch.delenv("NOWHERE", raising=False)


def complaint(make) -> str:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("runs/a", "runs/a"),
        (Path("runs/a"), "runs/a"),
        ("~", HOME),
        ("~/runs", f"{HOME}/runs"),
        ("$HOME/runs", f"{HOME}/runs"),
        ("${HOME}/runs", f"{HOME}/runs"),
        ("$WORK/$WORK", f"{WORK}{WORK}"),
        ("a/$WORK", f"a/{WORK}"),
        ("file:///data/a%20b", "/data/a b"),
        ("FILE:///data", "/data"),
        ("file:/data", "/data"),
        (Path("file:///data"), "/data"),
        ("file://localhost/data", "/data"),
        ("file://$HOME/runs", f"{HOME}/runs"),
        ("16:9.txt", "16:9.txt"),
        ("C:/data", "C:/data"),
        ("costs$", "costs$"),
        ("a$/b", "a$/b"),
        ("каталог/資料", "каталог/資料"),
    ],
)
def test_a_path_is_expanded_and_stays_when_expanded_again(value, path):
    once = local_path("train.output_dir", value)
    assert once == Path(path)
    assert local_path("train.output_dir", once) == once


def test_a_user_has_a_home():
    assert local_path("train.output_dir", "~root/runs") == Path("~root/runs").expanduser()


def test_text_keeps_what_a_path_drops():
    assert local_text("data.source", "./kjv") == "./kjv"  # a file, not the bundled text
    assert local_text("data.source", "./~ada") == "./~ada"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("gs://bucket/run", "is a URL, but must be a local path: mount it (for gs:// such as with"),
        ("GS://bucket", "is a URL"),
        ("gs:", "is a URL"),
        ("gs:/bucket", "is a URL"),
        (Path("gs://bucket"), "is a URL"),
        (" gs://bucket", "is a URL"),
        ("runs/gs://bucket", "is a URL"),
        ("s3://bucket", "is a URL"),
        ("hdfs://host/x", "is a URL"),
        ("https://host/x", "is a URL"),
        ("$BUCKET/run", "'$BUCKET/run' ('gs://bucket/run') is a URL"),
        ("file://host/x", "names 'host' as its host: write file:/// and the absolute path."),
        ("file://runs", "names 'runs' as its host"),
        ("file:", "must not be empty"),
        ("", "must not be empty: give a path."),
        ("  ", "must not be empty: give a path."),
        ("$NOWHERE/a", "needs the environment variable 'NOWHERE', which is not set: set it"),
        ("${NOWHERE}/a", "needs the environment variable 'NOWHERE', which is not set: set it"),
        ("$EMPTY/a", "needs the environment variable 'EMPTY', which is empty: set it"),
        ("${HOME", "has '${HOME', which names no variable: write ${NAME}."),
        ("${}/a", "has '${}', which names no variable"),
        ("$DOLLAR", "expands to 'a$WORK', which names a variable again"),
        ("~no-such-user/a", "needs the home folder '~no-such-user', which does not exist"),
        ("a\nb", "must not have control or undecodable characters"),
        ("a\0b", "must not have control or undecodable characters"),
        ("\udcff", "must not have control or undecodable characters"),
        ("file:///%FF", "must not have control or undecodable characters"),
        ("x" * 256, "is too long"),
        ("ab/" * 2000, "is too long"),
        (3, "=3 must be text: a path."),
        (None, "=None must be text: a path."),
        (b"runs", "=b'runs' must be text: a path."),
    ],
)
def test_what_is_no_local_path_is_refused(value, told):
    message = complaint(lambda: local_path("train.output_dir", value))
    assert message.startswith("train.output_dir=")
    assert told in message


def test_without_a_home_a_tilde_is_refused(monkeypatch):
    monkeypatch.setenv("HOME", "")
    assert "home folder '~'" in complaint(lambda: local_path("train.output_dir", "~/runs"))


def test_a_folder_is_no_file_and_lies_in_none(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to(tmp_path / "gone")
    for path in (file, file / "run", link):
        message = complaint(lambda path=path: folder_text("train.output_dir", path))
        assert "must be a folder, but" in message
        assert "is none" in message
    for path in (tmp_path, tmp_path / "new" / "run"):
        assert folder_text("train.output_dir", path) == str(path)


FIELDS = {
    "train.output_dir": lambda path: TrainConfig(output_dir=path).output_dir,
    "checkpoint.folder": lambda path: CheckpointConfig(folder=path).folder,
    "checkpoint.init_from": lambda path: CheckpointConfig(init_from=path).init_from,
    "data.source": lambda path: DataConfig(source=path).source,
    "data.sources[0].path": lambda path: (
        DataConfig(sources=(WeightedSource(path, 1.0),)).mixture[0].path
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_path_field_goes_through_the_door(name):
    assert FIELDS[name]("~/a") == FIELDS[name]("$HOME/a") == f"{HOME}/a"
    assert FIELDS[name](f"file://{HOME}/a") == f"{HOME}/a"
    for value in ("gs://bucket/a", "s3://bucket", "hdfs://h/a", "http://h/a", "https://h/a"):
        message = complaint(lambda value=value: FIELDS[name](value))
        assert message.startswith(f"{name}={value!r} is a URL")
    for value in ("", " ", "$NOWHERE", 3):
        assert complaint(lambda value=value: FIELDS[name](value)).startswith(f"{name}")


def test_the_checkpoints_of_a_run_lie_in_its_expanded_folder():
    config = RunConfig(train=TrainConfig(output_dir="$WORK/run"))
    assert config.checkpoint_folder == f"{WORK}/run/checkpoints"


def test_a_folder_is_expanded_from_a_file_and_from_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: {sources: [{path: $WORK/a, weight: 1}]}\ncheckpoint: {folder: ~/b}\n")
    config = load_config(path, ["train.output_dir=~/c"])
    assert config.data.mixture[0].path == f"{WORK}/a"
    assert (config.checkpoint.folder, config.train.output_dir) == (f"{HOME}/b", f"{HOME}/c")


def test_a_source_that_cannot_be_looked_at_is_no_traceback(tmp_path):
    (tmp_path / "file").touch()
    config = RunConfig(data=DataConfig(source=str(tmp_path / "file" / "text")))
    assert config.data.describe().endswith("file/text")
