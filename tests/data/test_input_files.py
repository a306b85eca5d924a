import gzip
import lzma
import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from damage import as_nobody
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_links_to_folders_are_followed(folder):
    (folder / "linked").symlink_to(folder / "sub")
    (folder / "sub" / "inner").symlink_to("..", target_is_directory=True)
    outside = folder / "outside"
    outside.mkdir()
    (outside / "only").symlink_to(folder / "elsewhere")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "z.txt").write_text("x")
    assert names(folder, "outside") == (["elsewhere/z.txt"], [])
    assert names(folder, "outside/**/*.txt") == (["elsewhere/z.txt"], [])
    for name in ("", "sub", "**/*.txt"):
        with pytest.raises(UserError, match=r"/inner.* leads back to .*: remove the link"):
            names(folder, name)


def test_a_file_reached_twice_is_refused_with_both_ways(folder):
    (folder / "linked").symlink_to(folder / "sub")
    with pytest.raises(
        UserError, match=r"sub/c.jsonl is among the inputs twice \(as .*linked/c.js"
    ):
        names(folder, "")
    (folder / "linked").unlink()
    (folder / "link.txt").symlink_to("b.txt")
    with pytest.raises(UserError, match=r"b.txt is among the inputs twice \(as .*b.txt and as .*l"):
        names(folder, "")
    (folder / "link.txt").unlink()
    (folder / "hard.txt").hardlink_to(folder / "b.txt")
    with pytest.raises(UserError, match=r"hard.txt is among the inputs twice \(as .*b.txt and as"):
        names(folder, "")


NODES = st.tuples(
    st.integers(0, 5),  # which of the folders there are holds it
    st.sampled_from(["a.txt", "b.jsonl", "c.md", "d", "e", ".h", ".h.txt"]),
    st.sampled_from(["folder", "folder", "file", "file", "link", "link", "fifo", "broken"]),
    st.integers(0, 7),  # what a link leads to
)


def plant(root, nodes):
    """Makes a tree of folders, files, links and pipes."""
    folders, everything = [root], [root]
    for holder, name, what, target in nodes:
        path = folders[holder % len(folders)] / name
        if os.path.lexists(path):
            continue
        if what == "folder":
            path.mkdir()
            folders.append(path)
        elif what == "file":
            path.write_text("x")
        elif what == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(everything[target % len(everything)] if what == "link" else "none")
        everything.append(path)


def visit(folder, above=()):
    """By the book: every entry that is reached, as (path, real path, what it is)."""
    above = (*above, folder.resolve())
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and path.resolve() not in above:
            yield from visit(path, above)
        elif path.is_dir():
            yield str(path), "", "cycle"
        elif path.is_file():
            what = "text" if path.suffix in (".txt", ".jsonl") else "other"
            yield str(path), str(path.resolve()), what
        else:
            yield str(path), "", "no file"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(nodes=st.lists(NODES, max_size=12))
def test_nothing_in_a_tree_is_passed_over(nodes):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "root"
        root.mkdir()
        plant(root, nodes)
        visited = list(visit(root))
        reals = [real for _, real, what in visited if what == "text"]
        bad = any(what in ("cycle", "no file") for _, _, what in visited)
        try:
            files, ignored = find_files([root])
        except UserError as error:
            assert "\n" not in str(error)
            assert bad or len(set(reals)) != len(reals) or not reals
        else:
            assert not bad
            assert sorted(file.path for file in files) == sorted(reals)
            assert sorted(ignored) == sorted(path for path, _, what in visited if what == "other")


def test_deeply_nested_folders():
    # Not in `tmp_path`: what removes that one calls itself for each level.
    name, before = tempfile.mkdtemp(), Path.cwd()
    try:
        os.chdir(name)
        for _ in range(1100):
            Path("d").mkdir()
            os.chdir("d")
        Path("a.txt").write_text("x")
        os.chdir(name)
        [file], _ = find_files(["d"])
        assert file.path.endswith("/d/d/a.txt")
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", name], check=True)


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


@pytest.mark.parametrize("given", ["{0}", "{0}/sub", "{0}/sub/x.txt", "{0}/sub/*", "{0}/**/x.txt"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_fifo, "x.txt is a named pipe: give a file on disk"),
        (make_socket, "x.txt is a socket: give a file on disk"),
        (lambda path: path.symlink_to("/dev/zero"), "x.txt is a device: give a file on disk"),
        (lambda path: path.symlink_to("none"), "x.txt is a broken link, to 'none': correct"),
        (lambda path: path.symlink_to("x.txt"), "x.txt' cannot be accessed: Too many levels"),
    ],
)
def test_what_is_no_file_is_named_and_not_opened(make, message, given):
    # A socket's path must be short.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("x")
        make(folder / "sub" / "x.txt")
        with pytest.raises(UserError, match=message) as error:
            find_files([given.format(name)])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["{0}", "{0}/**/*.txt", "{0}/*/b.txt"])
def test_a_folder_that_cannot_be_read(given):
    with tempfile.TemporaryDirectory() as name:
        closed = Path(name) / "closed"
        closed.mkdir()
        (Path(name) / "a").mkdir()
        (Path(name) / "a" / "b.txt").write_text("x")
        Path(name).chmod(0o755)
        closed.chmod(0)
        with as_nobody():
            if given == "{0}/*/b.txt":  # only names are asked for, and this one may not be there
                assert len(find_files([given.format(name)])[0]) == 1
            else:
                with pytest.raises(UserError, match="closed cannot be read: Permission denied; ma"):
                    find_files([given.format(name)])
                with pytest.raises(UserError, match=r"closed/a.txt' cannot be accessed: Perm"):
                    find_files([closed / "a.txt"])
        closed.chmod(0o755)


def test_a_pattern_means_what_the_shell_makes_of_it(folder):
    (folder / "sub" / "inner").mkdir()
    (folder / "sub" / "inner" / "z.txt").write_text("x")
    by_shell = sorted(
        path.name for path in folder.iterdir() if path.name not in ("README.md", "x.gz", ".hidden")
    )
    (folder / "README.md").unlink()
    (folder / "x.gz").unlink()
    assert names(folder, "*") == names(folder, *by_shell)
    assert "sub/inner/z.txt" in names(folder, "*")[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "an input is '': give the path"),
        ("~nobody-of-this-name/a.txt", "names a home folder that cannot be found"),
        ("a" * 5000, "a+…a+' cannot be accessed: File name too long"),
        ("a\0b", "cannot be accessed: it holds a null"),
    ],
)
def test_names_that_cannot_be(given, message):
    with pytest.raises(UserError, match=message) as error:
        find_files([given])
    assert len(str(error.value)) < 400


def test_a_file_that_has_changed_is_not_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    [file], _ = find_files([path])
    status = path.stat()
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=r"a.txt has changed since it was found: let"), file.open():
        pass
    [file], _ = find_files([path])
    with pytest.raises(UserError, match=r"a.txt has changed since"), file.open() as opened:
        assert opened.read() == b"two"
        path.write_text("three")
