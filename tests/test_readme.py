"""What the README shows is so: its Python, its shell commands, its configs and its samples."""

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import hybrid_jax as hj
from hybrid_jax.cli import main
from hybrid_jax.config.load import load_config
from hybrid_jax.config.run import RunConfig
from hybrid_jax.run import build_data

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_python_blocks_run(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + "\n".join(blocks("python")),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("equal") == 2  # both layouts of check_parity
    assert re.findall(r"^(\d) \d\.\d+$", done.stdout, re.MULTILINE) == ["4"]  # the hook
    assert "ended after 5" in done.stdout


def test_samples_are_what_is_printed():
    sessions = "".join(re.findall(r"^>>> .*?(?=^```)", README, re.DOTALL | re.MULTILINE))
    test = doctest.DocTestParser().get_doctest(sessions, {"hj": hj}, "README.md", "README.md", 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_shell_commands_run(tmp_path, monkeypatch, capsys):
    verses = (f"verse {number} of a long text\nin two lines" for number in range(300))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("\n\n".join(verses))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line)[1:] for block in blocks("sh") for line in block.splitlines()]
    assert [command[0] for command in commands] == ["data", "data", "data", "train"]
    for command in commands[:3]:
        assert main(command) == 0, capsys.readouterr().err
    assert "documents    300" in capsys.readouterr().out
    # A shorter row: the text is short.
    config = load_config(commands[3][1], [*commands[3][2:], "data.seq_len=16"])
    assert build_data(config)[0].batch(0)["tokens"].shape == (16, 16)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_configs_load(text, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert load_config(path) != RunConfig()


def test_every_named_file_is_there():
    for name in re.findall(r"[`(]((?:configs|tests|hybrid_jax|notebooks|docs)/[\w./-]*)", README):
        assert (ROOT / name).exists(), name


def test_every_named_field_is_a_field():
    fields = re.findall(r"`((?:model|strategy|optimizer|data|train|checkpoint)\.[a-z_]+)", README)
    assert len(fields) > 10
    for field in fields:
        section, _, name = field.partition(".")
        assert hasattr(getattr(RunConfig(), section), name), field


def test_ci_runs_the_command_of_the_readme():
    ci = (ROOT / ".ci" / "run").read_text()
    finder = next(line for line in ci.splitlines() if line.startswith("command="))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'{finder}\nprintf %s "$command"'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("python3 -m venv .venv-test && ")
    assert done.stdout.endswith(".venv-test/bin/pytest -n 2")
    url, folder = "https://github.com/hybrid-jax/hybrid-jax", "hybrid-jax"
    assert f"\ngit clone {url} && cd {folder} && {done.stdout}\n" in README
