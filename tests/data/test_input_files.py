import gzip
import lzma

import pytest

from hybrid_jax.data.files import find_files
from hybrid_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.txt").write_text("x")
    for name in ("b.txt", "a.TXT", "sub/c.jsonl", "sub/d.parquet", "e.txt.xz", "README.md", "x.gz"):
        (tmp_path / name).write_text("x")
    return tmp_path


def names(folder, *inputs):
    files, ignored = find_files([folder / name for name in inputs])
    prefix = f"{folder}/"
    return [f.path.removeprefix(prefix) for f in files], [i.removeprefix(prefix) for i in ignored]


def test_a_folder_is_all_its_texts_sorted_and_the_rest_is_named(folder):
    found = ["a.TXT", "b.txt", "e.txt.xz", "sub/c.jsonl", "sub/d.parquet"]
    assert names(folder, "") == (found, ["README.md", "x.gz"])


def test_inputs_keep_their_order_and_patterns_are_sorted(folder):
    assert names(folder, "sub/c.jsonl", "*.txt*") == (["sub/c.jsonl", "b.txt", "e.txt.xz"], [])
    assert names(folder, "**/*.jsonl") == (["sub/c.jsonl"], [])


def test_kinds_and_compression(folder):
    files, _ = find_files([folder])
    assert [(file.kind, file.compression) for file in files] == [
        ("txt", ""),
        ("txt", ""),
        ("txt", "xz"),
        ("jsonl", ""),
        ("parquet", ""),
    ]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no input: give text files, folders or patterns"),
        (["bb.txt"], r"no file '.*bb.txt': check the path. Did you mean 'b.txt'\?"),
        (["none/b.txt"], r"the folder '.*none' does not exist"),
        (["*.csv"], r"no file matches '.*\*.csv'"),
        (["README.md"], r"README.md: its ending says no known kind; files end in .txt, .jsonl"),
        (["x.gz"], r"x.gz: its ending says no known kind"),
        (["empty"], r"no texts in .*empty: files end in"),
        (["b.txt", "*.txt"], r"b.txt is among the inputs twice"),
    ],
)
def test_bad_inputs_are_one_line(folder, inputs, message):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=message) as error:
        find_files([folder / name for name in inputs])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_compressed_files_open_and_damaged_ones_are_one_line(tmp_path, ending, compress):
    path = tmp_path / f"a.txt.{ending}"
    packed = compress(b"some text" * 1000)
    for content, message in [
        (packed, None),
        (packed[:-20], r"a.txt.* cannot be decompressed \(.+\): it is damaged or cut off"),
        (b"some text", r"cannot be decompressed"),
        (packed[:30] + b"\xff\xff\xff\xff" + packed[34:], r"cannot be decompressed"),
    ]:
        path.write_bytes(content)
        [file], _ = find_files([path])
        if message is None:
            with file.open() as opened:
                assert opened.read() == b"some text" * 1000
        else:
            with pytest.raises(UserError, match=message), file.open() as opened:
                opened.read()


def test_a_file_that_is_gone(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    [file], _ = find_files([tmp_path / "a.txt"])
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a.txt cannot be read: No such file"), file.open():
        pass
