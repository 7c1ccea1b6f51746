import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlm.data.files import read_documents
from dlm.errors import UserError

TEXTS = ["one\ntwo", 'a "quoted", comma', "déjà vu 漢字"]


def read(path, field="text", limit=2**20):
    return [text for text, _ in read_documents(path, field, limit)]


LABELLED = {
    "a.jsonl": "".join(
        json.dumps({"text": text, "stars": stars}) + "\n"
        for text, stars in (("one", 5), ("", 1), ("two", 1))
    ),
    "a.csv": "stars,text\n5,one\n1,\n1,two\n",
    "a.tsv": "text\tstars\none\t5\n\t1\ntwo\t1\n",
}


@pytest.mark.parametrize("name", [*LABELLED, "a.parquet"])
def test_a_second_field_is_the_class_as_text(tmp_path, name):
    path = tmp_path / name
    if name in LABELLED:
        path.write_text(LABELLED[name])
    else:
        pq.write_table(pa.table({"stars": [5, 1, 1], "text": ["one", "", "two"]}), path)
    assert list(read_documents(path, "text", 2**20, "stars")) == [("one", "5"), ("two", "1")]
    assert list(read_documents(path, "text", 2**20)) == [("one", None), ("two", None)]
    with pytest.raises(
        UserError, match=r"no field 'star' .*; set data.label, did you mean 'stars'"
    ):
        list(read_documents(path, "text", 2**20, "star"))


def test_classes_that_cannot_be(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "kind": null}\n')
    with pytest.raises(UserError, match="line 1: field 'kind' is empty"):
        list(read_documents(path, "text", 2**20, "kind"))
    path.write_text('{"text": "one", "kind": ""}\n')
    with pytest.raises(UserError, match="every document needs a class"):
        list(read_documents(path, "text", 2**20, "kind"))
    text = tmp_path / "a.txt"
    text.write_text("one\n")
    with pytest.raises(UserError, match="a text file has no field 'kind'; data.label needs jsonl"):
        list(read_documents(text, "text", 2**20, "kind"))


def test_blank_lines_separate_documents_of_a_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefffirst\nline two\n\n  \nsecond\r\n\r\nthird é".encode())
    assert read(path) == ["first\nline two", "second", "third é"]


@pytest.mark.parametrize("text", ["a\nb\nc", "a\nb\nc\n", "\n\na\nb\nc\n\n"])
def test_without_blank_lines_inside_every_line_is_a_document(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert read(path) == ["a", "b", "c"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_rows_of_a_table_are_documents(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    texts = [*TEXTS, ""]
    if suffix == "jsonl":
        path.write_text("\n".join(json.dumps({"n": 1, "text": t}) for t in texts))
    elif suffix == "parquet":
        pq.write_table(pa.table({"n": [1] * 4, "text": texts}), path)
    else:
        mark = {"csv": ",", "tsv": "\t"}[suffix]
        quoted = ['"' + t.replace('"', '""') + '"' for t in texts]
        path.write_text(f"n{mark}text\n" + "".join(f"1{mark}{q}\n" for q in quoted))
    assert read(path) == TEXTS


def test_long_csv_fields_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 200_000 + "\n")  # the csv module's own limit is 131,072
    assert len(read(path)[0]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "a.txt: the file is empty"),
        ("a.txt", b"\n \n", "a.txt: the file holds no text"),
        ("a.txt", b"good\nbad \xe9t\xe9\n", "a.txt, line 2: not UTF-8 (byte 0xe9 at position 5)"),
        ("a.txt", "hello".encode("utf-16-le"), "a.txt, line 1: holds zero bytes"),
        ("a.txt", b"ok\n" + b"x" * 2000, "a.txt, line 2: longer than"),
        ("a.txt", b"x\n" * 900 + b"\ny", "the document that ends here is longer than"),
        ("a.pdf", b"%PDF", "unknown kind of file '.pdf'"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"txt": 1}\n',
            "a.jsonl, line 2: no field 'text' (there: txt)",
        ),
        ("a.jsonl", b'{"text": "x"}\n\n{"text"', "a.jsonl, line 3: not JSON"),
        ("a.jsonl", b"[1, 2]", "a.jsonl, line 1: a JSON list, not an object"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl, line 1: field 'text' is of type int"),
        ("a.jsonl", b'{"text": null}', "a.jsonl, line 1: field 'text' is empty (null)"),
        ("a.csv", b"body\nx\n", "a.csv, line 1: no field 'text' (there: body)"),
        ("a.csv", b"n,text\n1,x\n1,a,b\n", "a.csv, line 3: 3 columns where the header has 2"),
        ("a.parquet", b"not parquet at all", "a.parquet: not a readable parquet file"),
    ],
)
def test_bad_files_are_one_sentence_with_file_and_line(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path, limit=1000)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_parquet_column_names_those_there(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"txt": ["x"]}), path)
    with pytest.raises(UserError, match=r"no field 'text' \(there: txt\).*did you mean 'txt'"):
        read(path)
