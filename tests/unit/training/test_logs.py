"""Files that grow: no holes, no repeats, whatever was written beyond a checkpoint."""

import csv
from pathlib import Path

import pytest

from dlm.training.logs import MetricsCSV, json_lines, json_record


def rows(folder: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def log(folder: Path, steps: range) -> None:
    logger = MetricsCSV(folder)
    for step in steps:
        logger.log_metrics({"loss": step / 3, "time/speed": 7.0}, step)
        if step % 3 == 0:
            logger.log_metrics({"val": -float(step)}, step)
    logger.save()


def test_one_row_a_step_with_all_that_was_logged(tmp_path):
    log(tmp_path, range(1, 5))
    assert [int(row["step"]) for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert [float(row["loss"]) for row in rows(tmp_path)] == [1 / 3, 2 / 3, 1.0, 4 / 3]
    assert [row["val"] for row in rows(tmp_path)] == ["", "", "-3.0", ""]
    assert list(rows(tmp_path, "timing.csv")[0]) == ["step", "time/speed"]


@pytest.mark.parametrize("first", [1, 2, 3, 4, 7])
def test_resumed_file_equals_the_uninterrupted_one(tmp_path, first):
    """The killed process wrote up to 6 and half a line; the run goes on from an earlier step."""
    log(tmp_path / "whole", range(1, 8))
    log(tmp_path / "killed", range(1, 7))
    with (tmp_path / "killed/metrics.csv").open("a") as file:
        file.write("1,0.333")
    log(tmp_path / "killed", range(first, 8))
    for name in ("metrics.csv", "timing.csv"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_nothing_is_removed_before_something_is_logged(tmp_path):
    log(tmp_path, range(1, 4))
    MetricsCSV(tmp_path).finalize("success")
    assert len(rows(tmp_path)) == 3


def test_samples_resume_too_and_keep_their_line_ends(tmp_path):
    path = tmp_path / "samples.jsonl"
    for first, last in ((1, 4), (3, 5)):
        file = json_lines(path)
        for step in range(first, last):
            for index in range(2):
                file.append(step, json_record({"step": step, "index": index, "text": "a\u2028b\n"}))
    records = [line for line in path.read_text("utf-8").split("\n") if line]
    assert records == [
        f'{{"step": {step}, "index": {index}, "text": "a\u2028b\\n"}}'
        for step in range(1, 5)
        for index in range(2)
    ]
