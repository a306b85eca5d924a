import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from hybrid_jax.data.files import find_files
from hybrid_jax.data.pieces import plan
from hybrid_jax.data.readers import ReadOptions, read_documents
from hybrid_jax.errors import UserError

TEXTS = [f"document {i} Ω" for i in range(50)]


def write(path, texts=TEXTS, name="text", **options):
    columns = {"id": range(len(texts)), name: texts}
    parquet.write_table(pa.table(columns), path, row_group_size=8, **options)
    return path


def read(path, piece_bytes=1, **options):
    files, _ = find_files([path])
    read_options = ReadOptions(**options)
    pieces = plan(files, read_options, piece_bytes)
    return [
        document for piece in pieces for document in read_documents(piece, read_options)
    ], pieces


@pytest.mark.parametrize(("piece_bytes", "num_pieces"), [(1, 7), (10**9, 1)])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), "string")]
)
def test_rows_in_order_with_their_numbers(tmp_path, piece_bytes, num_pieces, kind):
    path = write(tmp_path / "a.parquet", pa.array(TEXTS).cast(kind), "body")
    documents, pieces = read(path, piece_bytes, text_field="body")
    assert [document.text for document in documents] == TEXTS
    assert documents[17].where() == f"{path}, row 17 (from 0)"
    assert len(pieces) == num_pieces


@pytest.mark.parametrize("value", [None, "", " "])
def test_a_missing_value_is_an_empty_document(tmp_path, value):
    path = write(tmp_path / "a.parquet", [*TEXTS[:20], value])
    with pytest.raises(UserError, match=r"a.parquet, row 20 \(from 0\): an empty document"):
        read(path)
    assert read(path, empty="skip")[0][20].text == ""


@pytest.mark.parametrize(
    ("column", "name", "message"),
    [
        (TEXTS, "txt", r"no column 'text'; there are id, txt. Name .* Did you mean 'txt'\?"),
        (list(range(50)), "text", r"column 'text' is of int64, not of strings"),
        ([TEXTS], "text", r"column 'text' is of list<.*string>, not of strings"),
    ],
)
def test_a_bad_column_is_one_line(tmp_path, column, name, message):
    with pytest.raises(UserError, match=message) as error:
        read(write(tmp_path / "a.parquet", column, name))
    assert "\n" not in str(error.value)


def cut(content):
    return content[:-10]


def no_text(content):
    return content[: len(content) // 2] + b"PAR1"


def flip(content):
    place = content.index(b"document 3")
    return content[:place] + b"\xff" + content[place + 1 :]


@pytest.mark.parametrize("damage", [cut, no_text, flip, lambda content: b""])
def test_a_corrupt_file_is_one_line(tmp_path, damage):
    path = write(
        tmp_path / "a.parquet",
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"a.parquet cannot be read as parquet \(.+\)") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_name_the_row(tmp_path):
    path = write(tmp_path / "a.parquet", compression="none", use_dictionary=False)
    path.write_bytes(flip(path.read_bytes()))
    with pytest.raises(UserError, match=r"row 3 \(from 0\): column 'text' is not UTF-8"):
        read(path)


def test_missing_package_is_one_line_with_the_command(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'hybrid-jax\[parquet\]'"):
        read(path)
