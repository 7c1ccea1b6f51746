"""Files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from dlm.files import replace_file, replace_text


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_text("good")

    def fail(target: Path) -> None:
        target.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert path.read_text() == "good"


def test_a_new_file_has_the_rights_of_any_other(tmp_path):
    replace_text(tmp_path / "new" / "mine.txt", "text")
    (tmp_path / "plain.txt").write_text("text")
    rights = [os.stat(tmp_path / name).st_mode for name in ("new/mine.txt", "plain.txt")]
    assert rights[0] == rights[1]
    assert (tmp_path / "new" / "mine.txt").read_text() == "text"
