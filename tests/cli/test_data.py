"""`hybrid-jax data`: from texts to token files on the command line, and one line for mistakes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hybrid_jax.cli import main
from hybrid_jax.data.tokens import open_tokens

TEXTS = ["In the beginning was the Word.", "And the Word was with God.", "Ω" * 400]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    (tmp_path / "b.txt").write_text("one\n\ntwo\n\n \n\nthree\n")
    (tmp_path / "notes.md").write_text("x")
    return tmp_path


def test_prepare_and_show(folder, capsys):
    output = str(folder / "out")
    inputs = [str(folder / "a.jsonl"), str(folder / "b.txt")]
    options = ["--separator", r"\n\n", "--workers", "2"]
    assert main(["data", "prepare", inputs[0], "--output", output, *options, inputs[1]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "tokenized 100 % of 0.0 MiB" in lines
    assert lines[lines.index(output) + 1] == "  documents    6 (0 empty ones skipped)"
    assert open_tokens(output).num_documents == 6
    assert main(["data", "show", output, "--documents", "4"]) == 0
    shown = capsys.readouterr().out
    assert "  tokenizer    bytes, 259 tokens\n" in shown
    assert f"  sources      2: {inputs[0]}, {inputs[1]}\n" in shown
    assert f"document 0, 31 tokens\n{TEXTS[0]}\n" in shown
    assert f"document 2, 801 tokens\n{'Ω' * 150} …\n" in shown
    assert "document 3, 4 tokens\none\n" in shown
    assert "document 4" not in shown
    assert main(["data", "prepare", *inputs, "--output", output, *options]) == 0
    assert f"{output} is this corpus already" in capsys.readouterr().out


def test_train_a_tokenizer_and_use_it(folder, capsys):
    tokenizer, output = str(folder / "tokenizer"), str(folder / "out")
    command = ["data", "tokenizer", str(folder / "a.jsonl"), "--output", tokenizer]
    assert main([*command, "--vocab-size", "270"]) == 0
    assert capsys.readouterr().out == f"{tokenizer}/tokenizer.json: 270 tokens\n"
    command = ["data", "prepare", str(folder), "--tokenizer", tokenizer, "--empty", "skip"]
    assert main([*command, "--output", output]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"2 files of other kinds are left out: {folder}/notes.md, ")
    assert main(["data", "show", output]) == 0
    shown = capsys.readouterr().out
    assert "  tokenizer    tokenizer.json, 270 tokens\n" in shown
    assert f"\n{TEXTS[1]}\n" in shown


def test_a_tokenizer_smaller_than_asked_for_says_so(folder, capsys):
    command = ["data", "tokenizer", str(folder / "b.txt"), "--output", str(folder / "out")]
    assert main([*command, "--vocab-size", "5000", "--separator", ""]) == 0
    assert "fewer than the 5,000 asked for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["data"],
            "no data command: choose one of prepare, tokenizer, show, or see `hybrid-jax data "
            "--help`.",
        ),
        (
            ["data", "prepar", "x"],
            "unknown data command 'prepar': choose one of prepare, tokenizer, show. "
            "Did you mean 'prepare'?",
        ),
        (
            ["data", "prepare", "{folder}/a.jsonl"],
            "the following arguments are required: --output: see `hybrid-jax data prepare --help`.",
        ),
        (
            ["data", "prepare", "{folder}/a.jsonl", "--output", "{folder}/out", "--sep"],
            "argument --separator: expected one argument: see `hybrid-jax data prepare --help`.",
        ),
        (
            ["data", "prepare", "{folder}/a.jsonl", "--output", "{folder}/out", "--fast"],
            "unknown option '--fast': see `hybrid-jax data prepare --help`.",
        ),
        (
            ["data", "prepare", "{folder}/a.jsonl", "--output", "{folder}/out", "--workers", "0"],
            "workers=0: must be at least 1.",
        ),
        (
            ["data", "prepare", "{folder}/a.json", "--output", "{folder}/out"],
            "no file '{folder}/a.json': check the path. Did you mean 'a.jsonl'?",
        ),
        (
            ["data", "prepare", "{folder}/a.jsonl", "--output", "{folder}/out", "--empty", "no"],
            "empty='no': choose 'error' or 'skip'.",
        ),
        (
            [
                *("data", "prepare", "{folder}/a.jsonl", "--output", "{folder}/out"),
                *("--tokenizer", "{folder}/none"),
            ],
            "no tokenizer '{folder}/none': give the path of a tokenizer.json or of its folder, or "
            "'bytes'.",
        ),
        (
            [
                "data",
                "tokenizer",
                "{folder}/a.jsonl",
                "--output",
                "{folder}/x",
                "--vocab-size",
                "9",
            ],
            "vocab_size=9: must be at least 257, the bytes and <|endoftext|>.",
        ),
        (
            ["data", "show", "{folder}"],
            "{folder} is unfinished or no corpus: give a folder written by `hybrid-jax data "
            "prepare` (header.json, tokens.bin, starts.bin).",
        ),
        (
            ["data", "show", "{folder}", "more"],
            "unexpected argument 'more'; see `hybrid-jax data show --help`.",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folder, capsys, arguments, message):
    assert main([argument.format(folder=folder) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message.format(folder=folder)}\n"
    assert captured.out == ""


def test_a_mistake_in_a_worker_process_is_one_line(folder):
    (folder / "c.jsonl").write_text('{"text": "x"}\n{"txt": "x"}\n')
    command = ["data", "prepare", str(folder / "c.jsonl"), str(folder / "a.jsonl")]
    result = subprocess.run(
        [sys.executable, "-m", "hybrid_jax", *command, "--output", str(folder / "out")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr == (
        f"error: {folder}/c.jsonl, line 2: no field 'text'; there are txt. Name the one with the "
        "text (--text-field). Did you mean 'txt'?\n"
    )


def test_ctrl_c_keeps_what_is_finished_and_prints_one_line(tmp_path):
    (tmp_path / "a.jsonl").write_text((json.dumps({"text": "word " * 2000}) + "\n") * 10_000)
    command = ["data", "prepare", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "hybrid_jax", *command, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not any((tmp_path / "out").glob(".parts/*/0*")):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert any((tmp_path / "out").glob(".parts/*/0*/header.json"))
    assert not (tmp_path / "out" / "header.json").exists()


def test_help_does_not_import_jax_or_read_config():
    code = (
        "import sys\n"
        "from hybrid_jax.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print({'jax', 'numpy', 'yaml'} & {*sys.modules})\n"
    )
    for arguments in (["--help"], ["data", "--help"], ["data", "prepare", "--help"]):
        command = [sys.executable, "-c", code, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.endswith("set()\n"), result.stdout


def test_data_commands_do_not_import_jax(folder):
    code = (
        "import sys\n"
        "from hybrid_jax.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert 'jax' not in sys.modules\n"
    )
    arguments = ["data", "prepare", str(folder / "a.jsonl"), "--output", str(folder / "out")]
    subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
