"""The help pages, made from the `configs/` folder: groups are its folders, options its files.

No torch and no Hydra here: `dlm --help` answers at once.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

import dlm
from dlm.cli.arguments import split_arguments

COMMANDS = {
    "train": "train a model",
    "evaluate": "bound the likelihood of a text: nats, perplexity, bits per byte",
    "generate": "write text with a trained model",
    "fit": "measure a model's loss by noise level; fit a schedule and training times to it",
    "lab": "run a convergence experiment: measured against predicted",
    "profile": "measure what finite steps cost a model; make the plan or grid that costs least",
    "validate": "compose a config and build its model without memory or data",
    "export": "write a model folder from a checkpoint",
}

EXAMPLES = {
    "train": (
        "dlm train",
        "dlm train experiment=demo run_dir=runs/demo",
        "dlm train data=text data.path='books/*.txt' tokenizer=char",
        "dlm train process=uniform parameterization=leave_one_out",
        "dlm train run_dir=runs/demo resume=true trainer.max_steps=2000",
    ),
    "evaluate": (
        "dlm evaluate checkpoint=runs/demo/checkpoints/best.ckpt output=likelihood.json",
        "dlm evaluate checkpoint=model data=text data.path=my.txt split=all",
    ),
    "generate": (
        "dlm generate checkpoint=runs/demo/checkpoints/best.ckpt num=4 seed=1",
        "dlm generate checkpoint=model prompt='It was, of course,' sampler.temperature=0.8",
        "dlm generate checkpoint=model infill='The [MASK] sat on the [MASK].' output=out.jsonl",
    ),
    "fit": (
        "dlm fit checkpoint=runs/demo/checkpoints/best.ckpt output=mine/schedule/fitted.yaml",
        "dlm train --config-dir=mine schedule=fitted",
    ),
    "lab": (
        "dlm lab --list",
        "dlm lab steps",
        "dlm lab pairs symbols=100 output=results",
        "dlm lab plans law=checksum law.length=8",
        "dlm lab all",
    ),
    "profile": (
        "dlm profile checkpoint=runs/demo/checkpoints/best.ckpt output=profile.json",
        "dlm generate checkpoint=model sampler=reveal plan=profile plan.path=profile.json",
    ),
    "validate": (
        "dlm validate",
        "dlm validate backbone=small length=1024 tokenizer=gpt2",
    ),
    "export": ("dlm export checkpoint=runs/demo/checkpoints/best.ckpt output=model dtype=bf16",),
}

_ROOTS = {"validate": "train"}  # commands whose keys are those of another
_FILLED_IN = ("vocab",)  # keys that `dlm.cli.vocabulary` fills in
_COMMENT = 32  # the column of the comments of keys
_NAMED = {"lab": "NAME|all|--list "}  # commands whose first argument is no key
_USAGE = """\
usage: dlm {command} {name}[key=value ...] [--config-dir DIR] [--help]

{about}.
"""


def configs_dir() -> Path:
    """The folder of configs: inside the installed package, or at the top of a checkout.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    package = Path(dlm.__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder.resolve()
    raise FileNotFoundError(f"no configs beside {package}: the installation of dlm is incomplete")


def group_options(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Config groups and their options: folders that hold yaml files, in every folder of configs."""
    options: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.glob("*/*.yaml"):
            options.setdefault(file.parent.name, set()).add(file.stem)
    return {group: sorted(names) for group, names in sorted(options.items())}


def root_config(name: str) -> dict[str, Any]:
    """`configs/<name>.yaml` as it is written."""
    return yaml.safe_load((configs_dir() / f"{name}.yaml").read_text("utf-8"))


def default_choices(entries: list[str | dict[str, str | None]]) -> dict[str, str | None]:
    """Groups and their default options, from the list `defaults` of a root config."""
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return {group.removeprefix("optional ").strip("/"): option for group, option in pairs}


def overview() -> str:
    """The page of `dlm --help`."""
    lines = [f"  {name:<10}{about}" for name, about in COMMANDS.items()]
    return (
        f"dlm {dlm.__version__}: discrete diffusion language models\n\n"
        "usage: dlm COMMAND [key=value ...]\n\n"
        + "\n".join(lines)
        + "\n\n`dlm COMMAND --help` shows keys, choices and examples.\n"
    )


def page(command: str, arguments: Sequence[str]) -> str:
    """The page of `dlm COMMAND --help`: groups, keys with their defaults, examples."""
    given = [a for a in arguments if a not in ("-h", "--help", "--list")]
    named = command in _NAMED and given and "=" not in given[0] and not given[0].startswith("-")
    _, extra = split_arguments(given[1:] if named else given)
    folders = [configs_dir(), *extra]
    root = _ROOTS.get(command, command)
    chosen = default_choices(root_config(root).get("defaults", []))
    options = group_options(folders)
    if named and given[0] in options.get(command, []):
        chosen = {command: given[0], **_own_choices(command, given[0], folders)}
    usage = {"command": command, "name": _NAMED.get(command, "")}
    parts = [_USAGE.format(**usage, about=COMMANDS[command].capitalize())]
    if groups := [_group_line(g, options.get(g, []), default) for g, default in chosen.items()]:
        parts.append("groups (group=option, * is the default; group.key=value sets a key):\n")
        parts[-1] += "\n".join(groups) + "\n"
        settings = [_settings_line(g, option, folders) for g, option in chosen.items() if option]
        if any(settings):
            parts.append("keys of these defaults:\n" + "\n".join(filter(None, settings)) + "\n")
    parts.append("keys and their defaults:\n" + "\n".join(_key_lines(root)) + "\n")
    parts.append("examples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[command]) + "\n")
    return "\n".join(parts)


def _group_line(group: str, options: Sequence[str], default: str | None) -> str:
    names = ", ".join(f"{name}*" if name == default else name for name in options)
    return textwrap.fill(
        names or "(none)", 96, initial_indent=f"  {group:<18}", subsequent_indent=" " * 20
    )


def _option_tree(group: str, option: str, folders: Sequence[Path]) -> dict[str, Any]:
    files = [folder / group / f"{option}.yaml" for folder in reversed(folders)]
    return yaml.safe_load(next(file for file in files if file.is_file()).read_text("utf-8"))


def _own_choices(group: str, option: str, folders: Sequence[Path]) -> dict[str, str | None]:
    """Groups that an option itself takes a choice of: the law of an experiment."""
    entries = _option_tree(group, option, folders).get("defaults", [])
    return {name.partition("@")[0]: at for name, at in default_choices(entries).items()}


def _settings_line(group: str, option: str, folders: Sequence[Path]) -> str:
    """The keys of an option with their values, those left out that other keys decide."""
    tree = _option_tree(group, option, folders)
    keys = [f"{group}.{key}={value}" for key, value in _leaves(tree)]
    return textwrap.fill(
        "  ".join(keys), 96, initial_indent="  ", subsequent_indent="    ", break_long_words=False
    )


def _key_lines(name: str) -> Iterator[str]:
    """The keys of a root config, nested ones with dots, their defaults and their comments."""
    text = (configs_dir() / f"{name}.yaml").read_text("utf-8")
    comments = _comments(yaml.compose(text), text.splitlines())
    for key, value in root_config(name).items():
        if key in (*_FILLED_IN, "defaults"):
            continue
        tree = {key: value}
        if isinstance(value, dict) and comments[key]:
            yield _key_line(f"{key}:", comments[key])
        for path, shown in _leaves(tree):
            yield _key_line(f"{path}={shown}", comments[path])


def _key_line(key: str, comment: str) -> str:
    if not comment:
        return f"  {key}"
    indent = f"  {key:<{_COMMENT - 4}}  "
    return textwrap.fill(comment, 98, initial_indent=indent, subsequent_indent=" " * _COMMENT)


def _comments(node: yaml.Node, lines: list[str], prefix: str = "") -> dict[str, str]:
    """What stands behind # on the line of each key, nested keys with dots."""
    found: dict[str, str] = {}
    for key, value in node.value:
        end = (key if isinstance(value, yaml.MappingNode) else value).end_mark
        path = f"{prefix}{key.value}"
        found[path] = lines[end.line][end.column :].partition("#")[2].strip()
        if isinstance(value, yaml.MappingNode):
            found |= _comments(value, lines, f"{path}.")
    return found


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key not in ("_target_", "defaults") and _is_setting(value):
            yield prefix + key, _value(value)


def _is_setting(value: object) -> bool:
    filled_in = isinstance(value, dict) or (isinstance(value, str) and value.startswith("${"))
    return not filled_in


def _value(value: object) -> str:
    plain = {None: "null", True: "true", False: "false", "???": "(required)"}
    return plain[value] if isinstance(value, bool | str | None) and value in plain else str(value)
