import json
import os
from importlib import resources

import pytest

from dlm.data import Austen, TextFiles
from dlm.errors import UserError


def test_austen_splits_by_chapter_over_all_novels():
    austen = Austen()
    parts = {split: list(austen.documents(split)) for split in austen.splits}
    assert len(parts["all"]) == 269
    assert {s: len(parts[s]) for s in ("train", "validation", "test")} == {
        "train": 243,
        "validation": 13,
        "test": 13,
    }
    assert sorted(parts["train"] + parts["validation"] + parts["test"]) == sorted(parts["all"])
    split = json.loads((resources.files("dlm.data") / "corpus" / "splits.json").read_text())
    for novel in split["novels"]:
        chapters = range(novel["first"], novel["first"] + novel["chapters"])
        for name in ("validation", "test"):
            assert set(split[name]) & set(chapters), (novel["title"], name)
    assert parts["all"][50].startswith("It is a truth universally acknowledged")
    assert len(b"\n\n".join(d.encode() for d in parts["all"])) == 4_000_356


def test_the_last_documents_are_validation(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"document {i}" for i in range(60)))
    source = TextFiles(str(path))
    assert source.splits == ("train", "validation", "all")
    assert list(source.documents("validation")) == [f"document {i}" for i in (57, 58, 59)]
    assert len(list(source.documents("train"))) == 57
    assert len(list(source.documents("all"))) == 60
    assert len(list(TextFiles(str(path), validation_fraction=0.5).documents("train"))) == 30


def test_a_tiny_fraction_still_holds_out_one_document(jsonl):
    source = TextFiles(jsonl(["a", "b"]))
    assert (list(source.documents("train")), list(source.documents("validation"))) == (["a"], ["b"])


def test_explicit_splits(jsonl):
    source = TextFiles(
        jsonl(["a", "b"], "1.jsonl"),
        validation_path=jsonl(["c"], "2.jsonl"),
        test_path=jsonl(["d"], "3.jsonl"),
    )
    assert source.splits == ("train", "validation", "test", "all")
    assert list(source.documents("train")) == ["a", "b"]
    assert list(source.documents("validation")) == ["c"]
    assert list(source.documents("test")) == ["d"]
    assert list(source.documents("all")) == ["a", "b", "c", "d"]


def test_folders_and_globs_are_sorted_and_skip_what_is_no_data(tmp_path, jsonl):
    jsonl(["b"], "d/2.jsonl")
    jsonl(["c"], "d/sub/3.jsonl")
    jsonl(["hidden"], "d/.git/x.jsonl")
    (tmp_path / "d" / "1.txt").write_text("a")
    (tmp_path / "d" / "README.md").write_text("no data")
    assert list(TextFiles(str(tmp_path / "d")).documents("all")) == ["a", "b", "c"]
    glob = TextFiles(str(tmp_path / "d" / "**" / "*.jsonl"))
    assert sorted(glob.documents("all")) == ["b", "c"]


def test_mistakes_are_sentences(tmp_path, jsonl):
    path = jsonl(["a"])
    with pytest.raises(UserError, match="no file, folder or match for '/no/where'"):
        list(TextFiles("/no/where").documents("train"))
    with pytest.raises(UserError, match="there is no split 'tset'.*train, validation"):
        list(TextFiles(path).documents("tset"))
    with pytest.raises(UserError, match="there is no split 'test'"):
        TextFiles(path).fingerprint("test")
    with pytest.raises(UserError, match="single document"):
        list(TextFiles(path).documents("validation"))
    with pytest.raises(UserError, match=r"validation_fraction must be in \[0, 1\), got 1.5"):
        TextFiles(path, validation_fraction=1.5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data files"):
        list(TextFiles(str(tmp_path / "empty")).documents("train"))
    assert list(TextFiles(path, validation_fraction=0).documents("train")) == ["a"]


def test_the_fingerprint_follows_contents_settings_and_split(tmp_path, jsonl):
    path = jsonl(["a", "b"])
    before = TextFiles(path).fingerprint("train")
    assert TextFiles(jsonl(["a", "b"], "copy.jsonl")).fingerprint("train") == before
    assert TextFiles(path).fingerprint("validation") != before
    assert TextFiles(path, validation_fraction=0.5).fingerprint("train") != before
    stat = os.stat(path)
    jsonl(["a", "c"])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time, other text
    assert TextFiles(path).fingerprint("train") != before


def test_large_files_are_fingerprinted_by_a_look(jsonl, monkeypatch):
    monkeypatch.setattr("dlm.data.sources._HASH_ALL", 0)
    path = jsonl(["a", "b"])
    before = TextFiles(path).fingerprint("train")
    assert TextFiles(path).fingerprint("train") == before
    os.utime(path, ns=(0, 0))
    assert TextFiles(path).fingerprint("train") != before
