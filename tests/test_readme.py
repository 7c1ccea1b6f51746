"""What the documents say is true: the README's commands run, links and named tests exist.

Every `dlm ...` line of a fenced shell block of README.md runs here, in its order, in one temporary
folder, as it is written but for the values in `TINY` and `STEPS`, which replace or follow its own
so that each takes seconds: a smaller network, shorter sequences, fewer steps. `my_texts`, which the
README speaks of, is made by the test. Lines that call `make` are checked against the Makefile,
lines that call `pip` against Makefile and Dockerfile. Nothing else may stand in such a block.
"""

import ast
import re
import shlex
from pathlib import Path

import pytest

from dlm.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
NETWORK = ["backbone=nano", "length=64"]
TINY = {
    "train": [*NETWORK, "batch_size=4", "draws=1", "trainer.limit_val_batches=4"],
    "validate": NETWORK,
    "evaluate": ["draws=1"],
    "generate": ["sampler.steps=2", "num=1"],
    "export": [],
    "fit": ["draws=128", "bins=6"],
    "profile": ["sequences=8", "length=16"],
    "lab": ["samples=64"],
}
STEPS = {"1000": "2", "1500": "3"}


def commands() -> list[list[str]]:
    """The lines of all shell blocks of the README, split as a shell does; comments dropped."""
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def made_tiny(arguments: list[str]) -> list[str]:
    """The same command, small: fewer steps, a smaller network, shorter sequences."""
    command, *rest = arguments
    tiny = TINY[command]
    if "resume=true" in rest or "--list" in rest:  # the saved configuration wins; nothing runs
        tiny = []
    rest = [re.sub(r"(max_steps=)(\d+)$", lambda m: m[1] + STEPS[m[2]], word) for word in rest]
    kept = [word for word in rest if word.split("=")[0] not in {t.split("=")[0] for t in tiny}]
    return [command, *kept, *tiny]


def test_every_command_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my_texts"
    folder.mkdir()
    (folder / "one.txt").write_text("A line of mine.\n\n" * 80, "utf-8")
    ran = [arguments for program, *arguments in commands() if program == "dlm"]
    assert {arguments[0] for arguments in ran} == set(TINY)
    for arguments in ran:
        code = main(made_tiny(arguments))
        assert code == 0, (arguments, capsys.readouterr().err)
    for file in [
        "runs/first/checkpoints/last.ckpt",
        "test.json",
        "infilled.jsonl",
        "exported",
        "austen.json",
        "austen.png",
        "lab/plans.json",
    ]:
        assert (tmp_path / file).exists(), file


def test_every_other_line_of_the_readme_is_known():
    makefile, dockerfile = ((ROOT / name).read_text("utf-8") for name in ("Makefile", "Dockerfile"))
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for program, *arguments in commands():
        assert program in {"dlm", "make", "pip", "git", "cd"}
        if program == "make":
            assert arguments[0] in targets
        if program == "pip":
            options = " ".join(word for word in arguments[1:-1] if word != "-e")
            assert f"pip install {options}".strip() in makefile
            assert options in dockerfile


def test_the_dockerfile_installs_what_is_there():
    """No engine runs here: every COPY has its source, and .dockerignore lets it through."""
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = [
        source
        for line in re.findall(r"^COPY (.*)$", dockerfile, re.M)
        for source in line.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert source in kept
    assert (ROOT / "constraints" / "cpu.txt").read_text().startswith("torch==")


@pytest.mark.parametrize(
    "page", ["README.md", "CHANGELOG.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    path = ROOT / page if (ROOT / page).exists() else ROOT / "docs" / page
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{page} links to {target}"


def test_the_tutorial_runs():
    text = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:  # the asserts in the text are the test
        exec(compile(block, "docs/tutorial.md", "exec"), names)
    assert "infilled" in names


def test_the_derivations_name_tests_that_exist():
    text = (ROOT / "docs" / "derivations.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 10
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert test in names, f"{file} has no {test}"
