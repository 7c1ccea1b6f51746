"""Files that cannot be written are refused before a model is loaded, and nothing is left behind."""

import os
from pathlib import Path

import pytest

FILES = [  # command, key, a file that it takes
    ("evaluate", "output", "mine.json"),
    ("fit", "output", "schedule/mine.yaml"),
    ("generate", "output", "mine.jsonl"),
    ("generate", "trace", "mine.html"),
    ("profile", "output", "mine.json"),
]
every_file = pytest.mark.parametrize(("command", "key", "file"), FILES)
MISSING = "checkpoint=no/such/model"  # refused when it is loaded


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@every_file
@pytest.mark.parametrize("above", ["taken", "taken/further"])
def test_a_place_under_a_file_is_refused(refused, tmp_path, command, key, file, above):
    """Permission bits do not bind root; this no one can write."""
    (tmp_path / "taken").write_text("a file, not a folder")
    sentence = refused(command, MISSING, f"{key}={above}/{file}")
    assert sentence == f"cannot write '{above}/{file}': Not a directory"
    assert [path.name for path in tmp_path.rglob("*")] == ["taken"]


@every_file
def test_a_folder_is_refused(refused, tmp_path, command, key, file):
    (tmp_path / file).mkdir(parents=True)
    assert refused(command, MISSING, f"{key}={file}") == f"cannot write '{file}': Is a directory"


def test_the_file_of_times_is_refused_too(refused, tmp_path):
    (tmp_path / "times").write_text("a file, not a folder")
    sentence = refused("fit", MISSING, "output=schedule/mine.yaml")
    assert sentence == "cannot write 'times/mine.yaml': Not a directory"


@every_file
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, which takes no files")
def test_a_file_system_without_files_is_refused(refused, command, key, file):
    assert refused(command, MISSING, f"{key}=/proc/none/{file}").startswith("cannot write")


@every_file
@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root")
def test_a_folder_without_permission_is_refused(refused, tmp_path, command, key, file):
    (tmp_path / "locked").mkdir(mode=0o500)
    sentence = refused(command, MISSING, f"{key}=locked/{file}")
    assert sentence == f"cannot write 'locked/{file}': Permission denied"


@every_file
@pytest.mark.parametrize("above", ["", "new/deep/"])
def test_a_run_that_fails_leaves_nothing(refused, tmp_path, command, key, file, above):
    assert "no/such/model" in refused(command, MISSING, f"{key}={above}{file}")
    assert list(tmp_path.iterdir()) == []


@every_file
def test_a_file_that_is_there_stays_until_a_new_one_is_whole(refused, tmp_path, command, key, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("old")
    assert "no/such/model" in refused(command, MISSING, f"{key}={file}")
    assert (tmp_path / file).read_text() == "old"
