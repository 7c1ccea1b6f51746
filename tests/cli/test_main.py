"""The frame: help, exit codes, what is imported."""

import json
import subprocess
import sys

import pytest

import dlm.cli.export
from dlm.cli.help import COMMANDS, configs_dir
from dlm.cli.main import main

HEAVY = ("torch", "hydra", "omegaconf", "lightning", "transformers", "datasets", "wandb")


def imported_by(*arguments: object) -> tuple[int, set[str]]:
    """Exit code of a command in a process of its own, and the heavy packages it loaded."""
    code = (
        "import json, sys\n"
        "from dlm.cli.main import main\n"
        f"code = main({[str(a) for a in arguments]!r})\n"
        f"print(json.dumps([code, [n for n in {HEAVY!r} if n in sys.modules]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    exit_code, names = json.loads(done.stdout.splitlines()[-1])
    return exit_code, set(names)


def test_help_lists_the_commands(dlm):
    result = dlm("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)
    assert dlm().out == result.out


def test_version(dlm):
    assert dlm("--version").out.startswith("dlm 0.")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_keys_and_examples(dlm, command):
    result = dlm(command, "--help")
    assert result.code == 0
    assert f"dlm {command}" in result.out.split("examples:")[1]
    assert max(map(len, result.out.splitlines())) <= 100


def test_help_lists_the_options_of_every_group(dlm):
    out = dlm("train", "--help").out
    for file in configs_dir().glob("*/*.yaml"):
        assert file.stem in out
        assert file.parent.name in out
    assert "absorbing*" in out


def test_help_shows_the_users_own_configs(dlm, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "my_letters.yaml").write_text("_target_: dlm.data.Austen\n")
    assert "my_letters" in dlm("train", "--help", "--config-dir", tmp_path).out


def test_help_is_light():
    assert imported_by("--help") == (0, set())
    assert imported_by("train", "--help") == (0, set())


def test_validate_imports_no_lightning():
    code, names = imported_by("validate")
    assert code == 0
    assert not names & {"lightning", "transformers", "datasets", "wandb"}


def test_evaluate_and_generate_import_no_lightning(checkpoint):
    for command in ("evaluate", "generate"):
        code, names = imported_by(command, f"checkpoint={checkpoint}", "device=cpu")
        assert code == 0
        assert not names & {"lightning", "transformers", "datasets", "wandb"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evalute"], ["evalute", "did you mean 'evaluate'?"]),
        (["generate", "--num", "3"], ["--num", "num=VALUE"]),
        (["generate", "num"], ["'num' is not an override", "key=value"]),
        (["train", "--config-dir", "/no/such/folder"], ["--config-dir", "/no/such/folder"]),
        (["train", "--config-dir"], ["--config-dir"]),
    ],
)
def test_a_slip_is_one_sentence(refused, arguments, words):
    sentence = refused(*arguments)
    assert all(word in sentence for word in words)


def test_an_interrupt_ends_with_130(dlm, monkeypatch):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("dlm.cli.export.run", interrupt)
    assert dlm("export").code == 130


def test_a_crash_of_ours_is_a_traceback(monkeypatch):
    def crash(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(dlm.cli.export, "run", crash)
    with pytest.raises(ZeroDivisionError):
        main(["export"])


def test_the_console_command_exits_with_the_code(tmp_path):
    command = [sys.executable, "-m", "dlm.cli.main", "generate", "checkpoint=nothing"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("dlm: there is no checkpoint 'nothing'")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # no surprise folders
