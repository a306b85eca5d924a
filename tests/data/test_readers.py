"""Readers: the documents and where they are, however the files are cut into pieces."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.data.files import find_files
from hybrid_jax.data.pieces import plan
from hybrid_jax.data.readers import ReadOptions, read_documents
from hybrid_jax.errors import UserError

PIECES = [1, 7, 30, 1000]


def read(path, piece_bytes=1000, **options):
    """(text, where) of every document, read piece by piece."""
    files, _ = find_files([path])
    read_options = ReadOptions(**options)
    return [
        (document.text, document.where().removeprefix(f"{path}, "))
        for piece in plan(files, read_options, piece_bytes)
        for document in read_documents(piece, read_options)
    ]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("piece_bytes", PIECES)
def test_a_text_file_is_one_document_to_the_byte(tmp_path, piece_bytes):
    text = "  first\r\n\r\n\nΩ\n"
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf" + text.encode())
    assert read(path, piece_bytes) == [(text, "line 1")]


@pytest.mark.parametrize("piece_bytes", PIECES)
@pytest.mark.parametrize(
    ("separator", "content", "documents"),
    [
        ("", "a\nb\n\nc\n", [("a\nb", "line 1"), ("c", "line 4")]),
        ("", "\n\na\n\n\n \t\nb c\r\n\r\nd", [("a", 3), ("b c", 7), ("d", 9)]),
        ("\n\n", "a\n\nb\n\n\n", [("a", 1), ("b", 3)]),
        (
            "<end>",
            "<end>\na\n\nb\n <end> \n<end>\r\n\nc<end>\nd",
            [("a\n\nb", 2), ("\nc<end>\nd", 7)],
        ),
        (".*", "a\n.*\nb\n", [("a", 1), ("b", 3)]),
        ("--", "abc", [("abc", 1)]),
    ],
)
def test_text_is_split_at_separator_lines(tmp_path, separator, content, documents, piece_bytes):
    path = write(tmp_path / "a.txt", content)
    expected = [(text, f"line {str(line).removeprefix('line ')}") for text, line in documents]
    assert read(path, piece_bytes, separator=separator) == expected
    packed = write(tmp_path / "a.txt.gz", gzip.compress(content.encode()))
    assert read(packed, piece_bytes, separator=separator) == expected


@given(
    lines=st.lists(st.sampled_from(["", " ", "--", "-- ", "a", "Ω b", "--c", "\r"]), max_size=12),
    end=st.sampled_from(["", "\n", "\r\n"]),
    separator=st.sampled_from(["", "--"]),
    piece_bytes=st.integers(1, 30),
)
@settings(deadline=None, max_examples=300)
def test_any_text_is_split_as_by_hand(tmp_path_factory, lines, end, separator, piece_bytes):
    text = "\n".join(lines) + end
    expected, document = [], []
    for line in [*text.split("\n"), separator]:
        if line.strip() != separator:
            document.append(line)
        elif document:
            expected.append("\n".join(document).removesuffix("\r"))
            document = []
    # A last line break ends the last line; it does not begin another.
    if separator and text.endswith("\n") and expected:
        expected[-1] = expected[-1].removesuffix("\n").removesuffix("\r")
    folder = tmp_path_factory.mktemp("split")
    found = read(write(folder / "a.txt", text), piece_bytes, separator=separator, empty="skip")
    assert [text for text, _ in found if text] == [text for text in expected if text.strip()]


@pytest.mark.parametrize("piece_bytes", PIECES)
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_json_lines(tmp_path, piece_bytes, ending):
    texts = [f"document {i}\nΩ" * (i % 5 + 1) for i in range(30)]
    lines = [
        json.dumps({"id": 1, "body": text}, ensure_ascii=i % 2) for i, text in enumerate(texts)
    ]
    content = ("\ufeff" + "\n".join(lines[:10]) + "\n\n" + "\n".join(lines[10:])).encode()
    path = tmp_path / f"a.{ending}"
    write(path, gzip.compress(content) if ending.endswith("gz") else content)
    numbers = [*range(1, 11), *range(12, 32)]
    expected = [(text, f"line {number}") for text, number in zip(texts, numbers, strict=True)]
    assert read(path, piece_bytes, text_field="body") == expected


@pytest.mark.parametrize("piece_bytes", [20, 1000])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"a.jsonl, line 4: invalid JSON \(Expecting ',' delimiter\)\."),
        (b"[" * 100_000, r"line 4: JSON nested too deeply"),
        (b'["text"]', r"line 4: not a JSON object with a field 'text'"),
        (
            b'{"txt": "x", "id": 1}',
            r"line 4: no field 'text'; there are txt, id. Name the one with the text "
            r"\(--text-field\). Did you mean 'txt'\?",
        ),
        (b"{}", r"line 4: no field 'text'; there are none"),
        (b'{"text": 3}', r"line 4: field 'text' is 3, not a string"),
        (b'{"text": "\xff"}', r"line 4: not UTF-8 \(byte 0xff\): convert the file"),
        (b'{"text": "\\ud800"}', r"line 4: field 'text' has half of a surrogate pair"),
        (b'{"text": " \\n"}', r"line 4: an empty document; remove it, or .*--empty skip"),
    ],
)
def test_a_bad_line_is_one_line_with_its_number(tmp_path, piece_bytes, line, message):
    good = b'{"text": "good"}\n'
    path = write(tmp_path / "a.jsonl", good * 2 + b"\n" + line + b"\n" + good)
    with pytest.raises(UserError, match=message) as error:
        read(path, piece_bytes)
    assert "\n" not in str(error.value)


def test_text_that_is_not_utf8_names_the_line(tmp_path):
    path = write(tmp_path / "a.txt", b"a\n\nb\nc\xff\n")
    for options in ({}, {"separator": ""}):
        with pytest.raises(UserError, match=r"a.txt, line 4: not UTF-8 \(byte 0xff\)"):
            read(path, 2, **options)


@pytest.mark.parametrize("content", ["", " \n"])
def test_empty_files(tmp_path, content):
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(UserError, match=r"a.txt(, line 1)?: an empty document"):
        read(path)
    assert [text for text, _ in read(path, empty="skip")] == [""]


def test_an_empty_document_between_separators(tmp_path):
    path = write(tmp_path / "a.txt", "a\n--\n \n--\nb\n")
    with pytest.raises(UserError, match=r"a.txt, line 3: an empty document"):
        read(path, separator="--")
    assert [text for text, _ in read(path, separator="--", empty="skip")] == ["a", "", "b"]


def test_small_files_share_a_piece_and_large_ones_are_cut(tmp_path):
    for i in range(10):
        write(tmp_path / f"{i}.jsonl", '{"text": "x"}\n')
    write(tmp_path / "large.jsonl", '{"text": "x"}\n' * 100)
    files, _ = find_files([tmp_path])
    pieces = plan(files, ReadOptions(), 70)
    assert [len(piece) for piece in pieces[:2]] == [5, 5]
    sizes = [sum(span.num_bytes for span in piece) for piece in pieces]
    assert max(sizes) <= 70 + 14
    assert sum(sizes) == 110 * 14


def test_bad_options(tmp_path):
    with pytest.raises(UserError, match="is more than one line"):
        ReadOptions(separator="a\nb")
    with pytest.raises(UserError, match="empty='drop': choose 'error' or 'skip'"):
        ReadOptions(empty="drop")
    path = write(tmp_path / "a.jsonl", '{"text": "x"}')
    with pytest.raises(UserError, match=r"separator='' is for .txt files, and there are none"):
        read(path, separator="")
