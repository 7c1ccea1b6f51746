"""Hydra's compose API, with free text kept away from it and its errors said in one sentence.

`compose` gives a `Config`: a tree whose interpolations are resolved when a part is taken out as
plain values. Text that a person writes (a prompt, a path) never passes through Hydra's grammar: a
placeholder takes its place and is replaced in the plain values, so that commas, quotes, brackets,
`=`, `$` and backslashes mean themselves. The word `null` alone stays the absence of a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dlm.cli.help import configs_dir, default_choices, group_options, root_config
from dlm.errors import UserError, nearest

_FREE_TEXT = {
    "allow",
    "checkpoint",
    "condition",
    "infill",
    "name",
    "output",
    "prompt",
    "prompts",
    "run_dir",
    "suffix",
    "trace",
}
_PLACEHOLDER = re.compile(r"__free_text_\d+__")
_FREE_LEAVES = {
    "path",
    "field",
    "name",
    "label",
    "classifier",
}  # data.path, data.field, data.name, tokenizer.path, ...


@final
class Config:
    """A composed tree; see the module."""

    def __init__(self, tree: DictConfig, texts: Mapping[str, str]) -> None:
        self._tree = tree
        self._texts = dict(texts)

    def set(self, key: str, value: Any) -> None:
        """Set a value that the program finds out, by its dotted key; text means itself."""
        if isinstance(value, str):
            placeholder = _placeholder(len(self._texts))
            self._texts[placeholder] = value
            value = placeholder
        with open_dict(self._tree):
            OmegaConf.update(self._tree, key, value, merge=False)

    def mentions(self, node: str, key: str) -> bool:
        """Whether a node refers to `${key}` anywhere below it."""
        raw = OmegaConf.to_container(OmegaConf.select(self._tree, node), resolve=False)
        return any(f"${{{key}}}" in str(value) for _, value in leaves(raw))

    def written(self) -> dict[str, Any]:
        """The leaves as they are written, by dotted key, interpolations not resolved."""
        return {key: self._fill(value) for key, value in leaves(OmegaConf.to_container(self._tree))}

    def plain(self, key: str | None = None) -> Any:
        """The tree, or the node at a dotted key, as plain Python values.

        Raises:
            UserError: a required value was not given, or an interpolation leads nowhere.
        """
        try:
            tree = self._tree if key is None else OmegaConf.select(self._tree, key)
            if not OmegaConf.is_config(tree):
                return self._fill(tree)
            values = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
        except MissingMandatoryValue as error:
            name = error.full_key or key
            raise UserError(f"{name} is required; add {name}=VALUE") from error
        except OmegaConfBaseException as error:
            raise UserError(f"{error.full_key or key}: {_first_line(error)}") from error
        return self._fill(values)

    def _fill(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._fill(item) for item in value]
        if isinstance(value, str):
            return _PLACEHOLDER.sub(lambda m: self._texts.get(m[0], m[0]), value)
        return value


def compose(command: str, overrides: Sequence[str], folders: Sequence[Path] = ()) -> Config:
    """Compose `configs/<command>.yaml` with the user's overrides.

    Args:
        command: name of the root config.
        overrides: `key=value`, `group=option`, as Hydra reads them.
        folders: the user's own folders of configs, searched after ours.

    Raises:
        UserError: an unknown key, group option or value syntax; the sentence names the nearest.
    """
    safe, texts = _set_text_apart(overrides)
    try:
        with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3"):
            tree = hydra.compose(command, [*safe, *_search_path(folders)])
    except MissingConfigException as error:
        raise UserError(_missing(error, folders)) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_explain(command, safe, overrides, folders, error)) from error
    _refuse_new_keys(tree, command, folders)
    return Config(tree, texts)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of everything in a plain tree that is not a mapping."""
    if not isinstance(tree, Mapping):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def _set_text_apart(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    safe: list[str] = []
    texts: dict[str, str] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        name = key.lstrip("+~")
        free = name in _FREE_TEXT or ("." in name and name.rpartition(".")[2] in _FREE_LEAVES)
        if equals and free and value != "null":
            placeholder = _placeholder(len(texts))
            texts[placeholder] = value
            override = f"{key}={placeholder}"
        safe.append(override)
    return safe, texts


def _placeholder(index: int) -> str:
    return f"__free_text_{index}__"


def _search_path(folders: Sequence[Path]) -> list[str]:
    quoted = [re.sub(r"(['\\])", r"\\\1", f"file://{folder}") for folder in folders]
    return ["hydra.searchpath=[{}]".format(",".join(f"'{path}'" for path in quoted))]


def _missing(error: MissingConfigException, folders: Sequence[Path]) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = group_options([configs_dir(), *folders]).get(group, [])
    return f"there is no {group}={option}; {nearest(option, options)}"


def _explain(
    command: str,
    safe: Sequence[str],
    written: Sequence[str],
    folders: Sequence[Path],
    error: Exception,
) -> str:
    """Find the override that Hydra stumbled over, and what it should have been."""
    groups = list(default_choices(root_config(command).get("defaults", [])))
    base = _base(command, safe, folders, groups)
    for override, original in zip(safe, written, strict=True):
        if sentence := _fault(override, original, base, groups):
            return sentence
    return _first_line(error)


def _base(
    command: str, safe: Sequence[str], folders: Sequence[Path], groups: Sequence[str]
) -> Config | None:
    """The command before keys are set, with the options that were chosen where they exist."""
    choices = [o for o in safe if o.partition("=")[0] in groups or "@" in o.partition("=")[0]]
    for chosen in (choices, []):
        if len(chosen) < len(safe):
            try:
                return compose(command, chosen, folders)
            except UserError:
                continue
    return None


def _fault(override: str, original: str, base: Config | None, groups: Sequence[str]) -> str:
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return f"cannot read {original!r}: write key=value, lists as key=[a,b], text in quotes"
    if parsed.is_sweep_override():
        return f"cannot read {original!r}: put text in quotes, and a list in [brackets]"
    key = parsed.key_or_group
    if base is None or key in groups or parsed.package is not None or parsed.is_add():
        return ""
    known = {name: None for leaf in base.written() for name in _parents(leaf)}
    if key in known:
        return ""
    parent = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == parent and not k.endswith("_target_")]
    if parent in known and not siblings:
        return f"there is no key {key!r}: the chosen {parent} has no settings"
    choices = siblings if parent in known else [*known, *groups]
    return f"there is no key {key!r}; {nearest(key, sorted(set(choices)))}"


def _parents(leaf: str) -> list[str]:
    parts = leaf.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _refuse_new_keys(tree: DictConfig, command: str, folders: Sequence[Path]) -> None:
    """Hydra's `+key=value` may add arguments of constructors; at the top nobody would read it."""
    root = root_config(command)
    groups = group_options([configs_dir(), *folders])
    known = {*root, *groups} - {"defaults"}
    for key in tree:
        if key not in known:
            raise UserError(f"there is no key {key!r}; {nearest(str(key), sorted(known))}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
