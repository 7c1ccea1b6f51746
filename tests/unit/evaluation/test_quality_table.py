"""The benchmark of quality: every stage on the shipped model, and every setting it names."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dlm.cli.compose import compose
from dlm.cli.help import default_choices, root_config
from dlm.evaluation.judge import Scores
from dlm.evaluation.quality import quality
from dlm.spec import build
from tests.toys import absorbing, hybrid, lifted, uniform
from tests.unit.evaluation import tiny_judge

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
PROCESSES = {type(made).__name__: made for made in (absorbing(), hybrid(), lifted(), uniform())}


@pytest.fixture
def run(monkeypatch):
    """Runs `python benchmarks/quality.py ...` in this process."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    program = importlib.import_module("quality")

    def call(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["quality.py", *map(str, arguments)])
        parsed = program.parse()
        parsed.run(parsed)

    return call


def settings():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("quality_settings").SETTINGS
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_every_setting_builds_and_suits_its_process():
    specs: dict[str, dict] = {}
    for process, lines in settings().items():
        assert len(set(lines)) == len(lines)
        for line in lines:
            if line not in specs:
                overrides = [*line.split(), "checkpoint=austen", "sampler.steps=8"]
                specs[line] = compose("generate", overrides).plain("sampler")
            sampler = build(specs[line], trust=("dlm",))
            assert sampler.refusal(PROCESSES[process]) is None, (process, line)
            assert sampler.calls(256) <= 8


def test_the_default_of_generate_is_measured_for_every_process():
    chosen = default_choices(root_config("generate")["defaults"])
    lists = settings()
    assert set(lists) == set(PROCESSES)
    assert all(f"sampler={chosen['sampler']}" in lines for lines in lists.values())


def test_the_stages_count_every_sample(run, tmp_path, capsys):
    folder, result = tmp_path / "runs", tmp_path / "results"
    judge = tiny_judge.write(tmp_path / "judge", context=4096, bos_token=tiny_judge.BOS)
    chosen = ["sampler=ancestral", "sampler=ancestral grid=cosine", "sampler=none_such"]
    generate = ["generate", folder, "austen=austen", "--device", "cpu", "--budgets", 2, 3]
    run(*generate, "--num", 2, "--settings", *chosen)
    files = {path: path.stat().st_mtime_ns for path in folder.glob("austen/*_*.npz")}
    assert "refused: there is no sampler=none_such" in capsys.readouterr().out
    run(*generate, "--num", 2, "--settings", *chosen, "--batch", 1)
    assert {path: path.stat().st_mtime_ns for path in files} == files  # drawn once
    with np.load(folder / "austen" / "ancestral-002.npz") as file:
        first = file["tokens"]
    assert (first[0] != first[1]).any()

    scoring = ["judge", folder, "--judge", judge, "--device", "cpu", "--dtype", "32"]
    run(*scoring)
    found = json.loads((folder / "quality.json").read_text("utf-8"))
    assert [(one["setting"], one["steps"], one["num"]) for one in found] == [
        ("sampler=ancestral", 2, 2),
        ("sampler=ancestral", 3, 2),
        ("sampler=ancestral grid=cosine", 2, 2),
        ("sampler=ancestral grid=cosine", 3, 2),
        ("held-out text", 0, 2),
    ]
    for one in found:
        assert {"judge_perplexity", "entropy", "distinct_4", "divergence_2"} <= set(one["numbers"])
        assert ("calls" in one["numbers"]) == (one["steps"] > 0)

    run("report", folder, "--save", result)
    (page,) = result.glob("*-quality.md")
    text = page.read_text("utf-8")
    assert text.count("| `sampler=ancestral` |") == 2
    assert "| setting | 2 | 3 |" in text
    (plot,) = result.glob("*.png")
    assert plot.name in text

    run(*generate, "--num", 3, "--settings", chosen[0], "--budgets", 2, "--batch", 2)  # anew
    with np.load(folder / "austen" / "ancestral-002.npz") as file:
        assert (file["tokens"][:2] == first).all()
        assert len(file["tokens"]) == 3
    run(*scoring)
    found = json.loads((folder / "quality.json").read_text("utf-8"))
    assert {one["num"] for one in found if one["steps"] == 2} == {2, 3}
    assert all(one["scored"] for one in found)


def test_files_of_generate_are_measured(run, tmp_path, capsys):
    judge = tiny_judge.write(tmp_path / "judge", bos_token=tiny_judge.BOS)
    record = {"text": "It was.", "tokens": [5, 6, 7], "calls": 4}
    lines = [json.dumps(record | {"calls": calls}) for calls in (4, 2)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    run("records", tmp_path / "a.jsonl", "--judge", judge, "--device", "cpu")
    out = capsys.readouterr().out
    assert "| a.jsonl |" in out
    assert "3.0 (2.0-4.0)" in out  # calls
    assert "0.500 (0.500-0.500)" in out  # distinct-1 of two equal texts


def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    page = (BENCHMARKS.parent / "docs" / "quality.md").read_text("utf-8")
    tiny_judge.write(tmp_path / "judge", bos_token=tiny_judge.BOS)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/quality.md", "exec"), {})  # the asserts in the text are the test


def test_every_number_is_explained():
    page = (BENCHMARKS.parent / "docs" / "quality.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows)))
    scores = Scores(*(torch.tensor([3]) for _ in range(3)))
    numbers = set(quality([[1, 2, 3, 4]], scores, [[1, 2, 3, 4]], [8]))
    assert named | {"distinct_2", "distinct_3"} == numbers
