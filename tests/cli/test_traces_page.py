"""Every command and the Python block of docs/traces.md run, and leave a page."""

import re
import shlex
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "traces.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_command_runs(dlm, tmp_path, monkeypatch):
    """As written, with two steps."""
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 2
    for program, *arguments in commands:
        assert program == "dlm"
        result = dlm(*arguments, "sampler.steps=2", "length=16", "device=cpu")
        assert result.code == 0, (arguments, result.err)
        path = tmp_path / "trace.html"
        assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
        path.unlink()


def test_the_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python")
    exec(compile(block, "docs/traces.md", "exec"), {})
    assert "ancestral, 8 steps" in (tmp_path / "trace.html").read_text("utf-8")
