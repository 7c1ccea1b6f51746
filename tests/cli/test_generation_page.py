"""Every command and every Python block of docs/generation.md runs, on the shipped model."""

import json
import re
import shlex
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "generation.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_command_runs(dlm, tmp_path, monkeypatch):
    """As written, with two steps."""
    monkeypatch.chdir(tmp_path)
    (lines,) = blocks("json")
    (tmp_path / "prompts.jsonl").write_text(lines, "utf-8")
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) > 5
    for program, *arguments in commands:
        assert program == "dlm"
        steps = [] if any("steps" in word for word in arguments) else ["sampler.steps=2"]
        steps = [word.replace("steps=16", "steps=2") for word in arguments] + steps
        result = dlm(*steps, "device=cpu")
        assert result.code == 0, (arguments, result.err)
    assert (tmp_path / "steps.html").exists()
    assert (tmp_path / "answers.jsonl").read_text("utf-8").count("\n") == 2 * lines.count("\n")


def test_the_python_blocks_run():
    names: dict[str, object] = {}
    for block in blocks("python"):  # the asserts in the text are the test
        exec(compile(block, "docs/generation.md", "exec"), names)
    assert "samples" in names


def test_what_the_page_says_of_a_choice(refused):
    keys = ("generate", "checkpoint=austen", "infill=She was[MASK:happy| sorry].")
    assert refused(*keys) == (
        "the choice 'happy' is 3 tokens of this model, it must be one; "
        "' happy' is one, its space belongs to it"
    )


def test_every_key_of_a_record_is_explained(dlm, tmp_path):
    output = tmp_path / "out.jsonl"
    keys = ("length=4", "sampler.steps=1", f"output={output}", "device=cpu")
    assert dlm("generate", "checkpoint=austen", *keys).code == 0
    table = PAGE[PAGE.index("## What a record holds") :]
    explained = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert set(json.loads(output.read_text("utf-8"))) == explained
