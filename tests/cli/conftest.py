"""A tiny run that the tests of the command line share, and helpers to call it in-process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from dlm.cli.main import main

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "that",
    "dog",
    "run",
    "to",
    "them",
    "all",
]
TINY = (
    "tokenizer=char",
    "length=16",
    "batch_size=8",
    "backbone.width=16",
    "backbone.depth=1",
    "backbone.heads=2",
    "trainer.accelerator=cpu",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "lr.warmup_steps=1",
    "sample=null",
)


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """Forty documents of a few words."""
    documents = [
        " ".join(WORDS[(i * k + i) % len(WORDS)] for k in range(1, 12)) for i in range(1, 41)
    ]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(text_file) -> tuple[str, ...]:
    """Overrides of a run that takes a second."""
    return ("data=text", f"data.path={text_file}", *TINY)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny) -> Path:
    """The folder of a finished absorbing run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "absorbing"
    assert main(["train", *tiny, f"run_dir={folder}", "trainer.max_steps=4"]) == 0
    return folder


@pytest.fixture(scope="session")
def checkpoint(trained) -> Path:
    return trained / "checkpoints" / "last.ckpt"


@pytest.fixture
def dlm(capsys) -> Run:
    """Call the command line in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(dlm) -> Callable[..., str]:
    """Call it with a mistake: exit code 2, nothing on the screen, one sentence, which is given."""

    def run(*arguments: object) -> str:
        result = dlm(*arguments)
        assert result.code == 2, result.out
        lines: Sequence[str] = [x for x in result.err.splitlines() if x.startswith("dlm: ")]
        assert len(lines) == 1
        assert "Traceback" not in result.err
        return lines[0].removeprefix("dlm: ")

    return run
