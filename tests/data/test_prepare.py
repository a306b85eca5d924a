"""Preparing: the same bytes whoever works on them and however often they are killed."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from hybrid_jax.data.bpe import train_bpe
from hybrid_jax.data.header import read_header
from hybrid_jax.data.prepare import prepare
from hybrid_jax.data.tokenizer import load_tokenizer
from hybrid_jax.data.tokens import open_tokens
from hybrid_jax.errors import RunError, UserError

FILES = ("tokens.bin", "starts.bin", "header.json")


class Said:
    """A progress that remembers."""

    def __init__(self):
        self.lines, self.total, self.done = [], 0, 0

    def start(self, total_bytes, done_bytes):
        self.total, self.done = total_bytes, done_bytes

    def advance(self, num_bytes):
        self.done += num_bytes

    def say(self, line):
        self.lines.append(line)


def texts(name, count=40):
    rng = random.Random(name)
    words = ["light", "darkness", "Ω", "waters", "the", "and"]
    return [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(count)]


@pytest.fixture
def corpus(tmp_path):
    """A folder with every kind of file, and all its documents in order."""
    folder = tmp_path / "texts"
    folder.mkdir()
    documents = {name: texts(name) for name in "abcd"}
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in documents["a"]))
    parquet.write_table(pa.table({"text": documents["b"]}), folder / "b.parquet", row_group_size=7)
    (folder / "c.txt").write_text("\n\n".join(documents["c"]))
    with gzip.open(folder / "d.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps({"text": t}) for t in documents["d"]))
    return folder, [text for name in "abcd" for text in documents[name]]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe(texts("bpe", 100), 280, folder)
    return folder


def content(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("piece_bytes", [200, 10**6])
def test_documents_in_order_each_with_its_end(corpus, tokenizer_folder, tmp_path, piece_bytes):
    folder, documents = corpus
    for name in ("bytes", str(tokenizer_folder)):
        output = tmp_path / f"out-{len(name)}"
        options = {"separator": "", "workers": 1, "piece_bytes": piece_bytes}
        source = prepare([folder], output, tokenizer=name, **options)
        tokenizer = load_tokenizer(source.tokenizer)
        expected = [np.append(tokenizer.encode(text), tokenizer.eos) for text in documents]
        np.testing.assert_array_equal(source.tokens, np.concatenate(expected))
        ends = np.cumsum([len(tokens) for tokens in expected])
        np.testing.assert_array_equal(source.starts, [0, *ends[:-1]])
        assert source.vocab_size == tokenizer.vocab_size
        assert source.num_bytes == sum(len(text.encode()) for text in documents)
        assert not (output / ".parts").exists()
        header = read_header(output)
        assert [Path(path).name[0] for path in header.sources] == list("abcd")
    # The tokenizer went with the tokens.
    assert source.tokenizer == str(output / "tokenizer.json")
    copied = Path(source.tokenizer).read_bytes()
    assert copied == (tokenizer_folder / "tokenizer.json").read_bytes()


def test_any_number_of_workers_writes_the_same_bytes(corpus, tokenizer_folder, tmp_path):
    folder, _ = corpus
    outputs = [tmp_path / f"out-{workers}" for workers in (1, 2, 3)]
    for workers, output in enumerate(outputs, 1):
        said = Said()
        prepare(
            [folder],
            output,
            tokenizer=tokenizer_folder,
            separator="",
            workers=workers,
            piece_bytes=300,
            progress=said,
        )
        assert said.done == said.total > 0
    assert content(outputs[0]) == content(outputs[1]) == content(outputs[2])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_mistake_is_told_by_any_number_of_workers(tmp_path, workers):
    lines = ['{"text": "x"}'] * 200
    lines[60], lines[150] = "{", "["
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"a.jsonl, line 61: invalid JSON") as error:
        prepare([tmp_path], tmp_path / "out", workers=workers, piece_bytes=100)
    assert "\n" not in str(error.value)
    # Corrected, it goes anew: the file is another.
    lines[60] = lines[150] = lines[0]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    said = Said()
    source = prepare([tmp_path / "a.jsonl"], tmp_path / "out", workers=workers, progress=said)
    assert source.tokens.tolist() == [ord("x"), 257] * 200
    assert said.lines == ["inputs or options have changed since the unfinished run: starting anew"]


def test_empty_documents_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": ""}\n{"text": " "}\n')
    said = Said()
    options = {"empty": "skip", "piece_bytes": 1, "workers": 1, "progress": said}
    source = prepare([tmp_path], tmp_path / "out", **options)
    assert source.tokens.tolist() == [ord("x"), 257]
    assert said.lines == ["2 empty documents were skipped"]
    assert read_header(tmp_path / "out").num_skipped == 2
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match=r"no documents in .*a.jsonl"):
        prepare([tmp_path], tmp_path / "new", **options)


def test_a_finished_corpus_is_kept_and_another_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a\n\nb")
    first = prepare([tmp_path], tmp_path / "out", workers=1)
    before = (tmp_path / "out" / "tokens.bin").stat().st_mtime_ns
    said = Said()
    prepare([tmp_path / "a.txt"], tmp_path / "out", workers=1, progress=said)
    assert said.lines == [f"{tmp_path / 'out'} is this corpus already"]
    assert (tmp_path / "out" / "tokens.bin").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"out holds another corpus: .*--overwrite"):
        prepare([tmp_path], tmp_path / "out", separator="", workers=1)
    assert open_tokens(tmp_path / "out").fingerprint == first.fingerprint
    second = prepare([tmp_path], tmp_path / "out", separator="", workers=1, overwrite=True)
    assert second.num_documents == 2
    (tmp_path / "out" / "starts.bin").unlink()
    with pytest.raises(UserError, match=r"out holds a damaged corpus"):
        prepare([tmp_path], tmp_path / "out", separator="", workers=1)
    (tmp_path / "out" / "header.json").unlink()
    with pytest.raises(UserError, match=r"tokens.bin is there, but not of an unfinished run"):
        prepare([tmp_path], tmp_path / "out", workers=1)


def test_the_config_of_a_tokenizer_goes_with_it(tokenizer_folder, tmp_path):
    (tmp_path / "a.txt").write_text("the light")
    named = tmp_path / "named"
    shutil.copytree(tokenizer_folder, named)
    vocabulary = json.loads((named / "tokenizer.json").read_text())["model"]["vocab"]
    (named / "tokenizer_config.json").write_text('{"eos_token": "!"}')
    options = {"workers": 1, "overwrite": True}
    source = prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer=named, **options)
    assert source.tokens[-1] == load_tokenizer(source.tokenizer).eos == vocabulary["!"]
    source = prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer=tokenizer_folder, **options)
    assert source.tokens[-1] == load_tokenizer(source.tokenizer).eos == 0


def test_a_tokenizer_in_the_output_folder(tokenizer_folder, tmp_path):
    (tmp_path / "a.txt").write_text("the light")
    shutil.copytree(tokenizer_folder, tmp_path / "out")
    source = prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer=tmp_path / "out", workers=1)
    assert load_tokenizer(source.tokenizer).decode(source.tokens) == "the light"


def test_parts_damaged_by_a_crash_are_made_again(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 15)
    output = tmp_path / "out"
    # It cannot be put in its place, so that all parts stay.
    (output / ".parts").mkdir(parents=True)
    (output / "tokens.bin").mkdir()
    with pytest.raises(RunError, match=r"Is a directory. Finished pieces are kept"):
        prepare([tmp_path / "a.jsonl"], output, workers=1, piece_bytes=30)
    (output / "tokens.bin").rmdir()
    [parts] = [path for path in (output / ".parts").iterdir() if path.is_dir()]
    (parts / "000000" / "tokens.bin").write_bytes(b"")
    (parts / "000001" / "header.json").write_text("")
    for part, name in [("000002", "tokens.bin"), ("000003", "starts.bin")]:
        size = (parts / part / name).stat().st_size
        (parts / part / name).write_bytes(bytes(size))
    said = Said()
    options = {"workers": 1, "piece_bytes": 30, "progress": said}
    source = prepare([tmp_path / "a.jsonl"], output, **options)
    assert said.lines == ["resuming: 1 of 5 pieces are finished"]
    assert source.tokens.tolist() == [ord("x"), 257] * 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers=0: must be at least 1"),
        ({"piece_bytes": 0}, "piece_bytes=0: must be at least 1"),
        ({"tokenizer": "byte"}, "no tokenizer 'byte'.* Did you mean 'bytes'"),
        ({"inputs": ["{0}/b.txt"]}, "no file '.*b.txt'.* Did you mean 'a.txt'"),
        ({"output": "{0}/a.txt/x"}, "'.*/x' cannot be written to: Not a directory"),
        ({"output": "/proc/x"}, "'/proc/x' cannot be written to: No such file"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, arguments, message):
    (tmp_path / "a.txt").write_text("text")
    defaults = {"inputs": ["{0}/a.txt"], "output": "{0}/out", "workers": 1}
    chosen = defaults | arguments
    inputs = [name.format(tmp_path) for name in chosen.pop("inputs")]
    with pytest.raises(UserError, match=message) as error:
        prepare(inputs, chosen.pop("output").format(tmp_path), **chosen)
    assert "\n" not in str(error.value)


SCRIPT = """
import sys
from hybrid_jax.data.prepare import prepare
source, output, tokenizer, workers = sys.argv[1:]
prepare([source], output, tokenizer=tokenizer, workers=int(workers), piece_bytes=2000)
"""


def start(source, output, tokenizer, workers):
    command = [sys.executable, "-c", SCRIPT, source, output, tokenizer, workers]
    return subprocess.Popen(
        list(map(str, command)), start_new_session=True, stderr=subprocess.PIPE, text=True
    )


def group_is_gone(group, seconds=10.0):
    """Waits for every process of a group to end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_instant_it_goes_on_to_the_same_bytes(tmp_path, tokenizer_folder, workers):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts("kill", 4000)))
    arguments = (path, tmp_path / "killed", tokenizer_folder, workers)
    output = arguments[1]
    rng = random.Random(workers)
    instants = [
        lambda: num_parts(output) > 0,
        lambda: num_parts(output) > 20,
        lambda: num_parts(output) > 90,
        lambda: any(output.glob(".parts/*/.corpus")),
        lambda: (output / "tokens.bin").exists(),
        lambda: (output / "header.json").exists(),
    ]
    killed_with = []
    for instant in instants:
        process = start(*arguments)
        while process.poll() is None and not instant():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.005))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            # What was finished before was not made again.
            first = next(output.glob(".parts/*/000000"), None)
            killed_with.append((num_parts(output), first and first.stat().st_ino))
        assert group_is_gone(process.pid), "workers outlive the process that started them"
    assert len(killed_with) >= 4
    assert 0 < killed_with[0][0] < killed_with[1][0] < killed_with[2][0] < 180
    # (With two workers the first part need not be the first that is finished.)
    assert len({inode for _, inode in killed_with[:3]} - {None}) == 1
    assert start(*arguments).wait(60) == 0
    assert not (output / ".parts").exists()
    assert start(path, tmp_path / "straight", *arguments[2:]).wait(60) == 0
    assert content(output) == content(tmp_path / "straight")


def num_parts(output):
    return len(list(output.glob(".parts/*/0*")))


def test_only_one_process_prepares_into_a_folder(tmp_path):
    import fcntl

    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "out" / ".parts").mkdir(parents=True)
    with (tmp_path / "out" / ".parts" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is preparing into"):
            prepare([tmp_path], tmp_path / "out", workers=1)
    prepare([tmp_path], tmp_path / "out", workers=1)


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("text")
    script = tmp_path / "script.py"
    script.write_text(
        "from hybrid_jax.data.prepare import prepare\n"
        f"prepare(['{tmp_path}'], '{tmp_path}/out', workers=2, piece_bytes=1)\n"
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1].startswith("hybrid_jax.errors.RunError: a worker process")


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 100)
    code = (
        "import resource, signal, sys\n"
        "from hybrid_jax.data.prepare import prepare\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        f"prepare(['{tmp_path}/a.jsonl'], '{tmp_path}/out', workers=1, piece_bytes=200)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("hybrid_jax.errors.RunError: writing to ")
    assert "Finished pieces are kept" in last
    said = Said()
    options = {"workers": 1, "piece_bytes": 200, "progress": said}
    assert prepare([tmp_path / "a.jsonl"], tmp_path / "out", **options).num_documents == 100
    assert said.lines[0].startswith("resuming: ")


def test_workers_do_not_import_jax():
    code = "import hybrid_jax.data.prepare, sys; print({'jax', 'rich', 'pyarrow'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n"


def test_a_worker_that_dies_is_one_line(tmp_path):
    from hybrid_jax.data.workers import map_in_order

    with pytest.raises(RunError, match="a worker process died"):
        list(map_in_order(os._exit, [1, 1], 2))


def test_names_that_are_no_text(tmp_path, capsys):
    from hybrid_jax.cli import main

    folder = tmp_path / "texts"
    folder.mkdir()
    for name in (b"\xff.txt", b"\xfe.md"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("text")
    output = str(tmp_path / "out")
    assert main(["data", "prepare", str(folder), "--output", output, "--workers", "1"]) == 0
    assert main(["data", "show", output]) == 0
    shown = capsys.readouterr().out
    assert f"1 files of other kinds are left out: {folder}/\\udcfe.md" in shown
    assert f"sources      1: {folder}/\\udcff.txt" in shown
