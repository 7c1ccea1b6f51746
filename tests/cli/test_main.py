"""The frame: help, exit codes, what is imported."""

import json
import re
import runpy
import subprocess
import sys

import pytest

import dlm.cli.export
from dlm.cli.help import COMMANDS, configs_dir
from dlm.cli.main import main

HEAVY = ("torch", "hydra", "omegaconf", "lightning", "transformers", "datasets", "wandb")


def imported_by(*commands: list[object]) -> set[str]:
    """The heavy packages that commands load, run one after the other in a process of their own."""
    calls = [[str(argument) for argument in command] for command in commands]
    code = (
        "import json, sys\n"
        "from dlm.cli.main import main\n"
        f"assert not any([main(call) for call in {calls!r}])\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


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
        if file.parent.name in ("lab", "law"):  # of the lab: no part of a training run
            continue
        assert file.stem in out
        assert file.parent.name in out
    assert "absorbing*" in out


def test_help_shows_the_users_own_configs(dlm, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "my_letters.yaml").write_text("_target_: dlm.data.Austen\n")
    assert "my_letters" in dlm("train", "--help", "--config-dir", tmp_path).out


def test_help_is_light():
    assert imported_by(["--help"], ["train", "--help"], ["--version"]) == set()


def test_only_train_imports_lightning(checkpoint):
    model = [f"checkpoint={checkpoint}", "device=cpu"]
    names = imported_by(["validate"], ["evaluate", *model], ["generate", *model])
    assert {"torch", "hydra"} <= names
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


@pytest.mark.parametrize("command", ["train", "evaluate", "generate"])
def test_scripts_are_the_commands(command, monkeypatch, capsys):
    script = configs_dir().parent / "scripts" / f"{command}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert f"usage: dlm {command}" in capsys.readouterr().out


def test_help_lists_the_keys_of_the_default_choices(dlm):
    page = dlm("generate", "--help").out
    assert "sampler.temperature=1.0" in page
    assert "sampler.kernel" not in page  # an object, not a setting
    assert "backbone.width=64" in dlm("train", "--help").out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_key_of_a_command_with_its_default_and_comment(dlm, command):
    """As they stand in the yaml, line by line; nested ones as they are set."""
    name = "train" if command == "validate" else command
    page = dlm(command, "--help").out.split("keys and their defaults:")[1].split("examples:")[0]
    lines = {line.split("=")[0].strip(): line for line in page.splitlines()}
    text = (configs_dir() / f"{name}.yaml").read_text("utf-8")
    above, listed = "", 0
    for line in text.split("- _self_")[-1].splitlines():
        found = re.fullmatch(r"( *)(\w+):(?: +([^#]*?))?(?: +# (.*))?", line)
        if found is None:
            continue
        nested, key, value, comment = found.groups()
        above = above if nested else key
        if not value or value.startswith("${") or key == "_target_" or above == "vocab":
            continue
        path = f"{above}.{key}" if nested else key
        shown = "(required)" if value == "???" else value
        assert re.match(rf"  {re.escape(f'{path}={shown}')}(  |$)", lines[path])
        assert (comment or "").split(" ")[0] in lines[path]
        listed += 1
    assert listed == sum("=" in line[:40] for line in page.splitlines())


def test_help_shows_what_a_nested_key_is_for(dlm):
    page = dlm("generate", "--help").out
    assert "blocks.size=null" in page
    assert "tokens of a block: text of any length" in page
    assert "guidance.scale=1.0" in page
    assert "guidance:                     see docs/guidance.md" in page
    assert "sample.every_n_steps=1000" in dlm("train", "--help").out
