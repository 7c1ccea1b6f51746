"""`dlm lab NAME [key=value ...]`, `dlm lab all`, `dlm lab --list`: measured against predicted.

An experiment is a yaml of `configs/lab/`, or of a folder given with `--config-dir`; those that take
a law of your choice name one of `configs/law/` in their defaults, and `law=NAME` takes another. It
leaves NAME.json (claims, series, settings) and NAME.png in the folder `output`. Exit code 1 where a
claim does not hold.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml
from rich.console import Console

import dlm
from dlm.cli.arguments import split_arguments
from dlm.cli.common import request, say, screen, write_text
from dlm.cli.compose import compose
from dlm.cli.help import configs_dir, group_options
from dlm.errors import UserError, nearest
from dlm.lab.experiments import Claim, Experiment, Result
from dlm.spec import build, resolve_class

DISAGREES = 1
_GROUP, _LAW = "lab", "law"
_SIGNS = {"equal": "=", "at most": "<=", "at least": ">="}


@final
@dataclass(frozen=True)
class LabRequest:
    """The keys of `configs/lab.yaml` beside those of the experiment."""

    output: str
    trust: Sequence[str]


def run(arguments: Sequence[str]) -> int:
    """Run one experiment or all of them.

    Returns:
        0 if everything that was predicted came out, else 1.

    Raises:
        UserError: an unknown experiment or setting.
    """
    given = list(arguments)
    listing = "--list" in given
    if listing:
        given.remove("--list")
    name = given.pop(0) if given and _is_name(given[0]) else None
    overrides, folders = split_arguments(given)
    names = group_options([configs_dir(), *folders]).get(_GROUP, [])
    console = screen()
    if listing:
        return _list(console, names, folders)
    if name == "all":
        _refuse_settings(overrides)
        return _run_all(console, names, overrides, folders)
    if name not in names:
        problem = "name an experiment" if name is None else f"there is no experiment {name!r}"
        raise UserError(f"{problem}; {nearest(name or '', names)} (`dlm lab --list` tells more)")
    return _verdict(_run_one(console, name, overrides, folders))


def _is_name(argument: str) -> bool:
    return "=" not in argument and not argument.startswith(("-", "~"))


def _list(console: Console, names: Sequence[str], folders: Sequence[Path]) -> int:
    width = max(map(len, names))
    for name in names:
        files = [folder / _GROUP / f"{name}.yaml" for folder in (*folders, configs_dir())]
        spec = yaml.safe_load(next(f for f in files if f.is_file()).read_text("utf-8"))
        say(console, f"{name:<{width}}  {_about(spec.get('_target_', ''))}")
    laws = group_options([configs_dir(), *folders]).get(_LAW, [])
    say(console, f"law=NAME, where a law of your choice is taken: {', '.join(laws)}")
    return 0


def _about(target: str) -> str:
    """The line of an experiment; the class of a user's own is not imported for a list."""
    if not target.startswith("dlm."):
        return target
    return getattr(resolve_class(target, trust=("dlm",)), "about", "")


def _refuse_settings(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        if not _is_root(key):
            raise UserError(f"`dlm lab all` runs experiments as they are, got {override!r}")


def _is_root(key: str) -> bool:
    return key.lstrip("+~") in LabRequest.__dataclass_fields__


def _run_all(
    console: Console, names: Sequence[str], overrides: Sequence[str], folders: Sequence[Path]
) -> int:
    results = {}
    for name in names:
        results[name] = _run_one(console, name, overrides, folders)
        say(console, "")
    width = max(map(len, names))
    for name, result in results.items():
        right = sum(claim.holds for claim in result.claims)
        text = "agrees" if result.holds else "DISAGREES"
        say(console, f"{name:<{width}}  {text:<9}  {right} of {len(result.claims)} claims hold")
    return max(_verdict(result) for result in results.values())


def _verdict(result: Result) -> int:
    return 0 if result.holds else DISAGREES


def _run_one(
    console: Console, name: str, overrides: Sequence[str], folders: Sequence[Path]
) -> Result:
    """Compute, write, tell."""
    _refuse_law(name, overrides, folders)
    config = compose("lab", [f"{_GROUP}={name}", *map(_placed, overrides)], folders)
    settings = config.plain(_GROUP)
    keys = request(LabRequest, {k: v for k, v in config.plain().items() if k != _GROUP})
    experiment = build(settings, trust=("dlm", *keys.trust), path=_GROUP)
    if not isinstance(experiment, Experiment):
        raise UserError(f"configs/lab/{name}.yaml must name an Experiment, got {settings}")
    say(console, f"{name}: {experiment.about}")
    began = time.perf_counter()
    result = experiment.run()
    seconds = time.perf_counter() - began
    for claim in result.claims:
        say(console, _line(claim))
    folder = Path(keys.output).expanduser()
    _write(folder, name, experiment, settings, result, seconds)
    verdict = "agrees with its predictions" if result.holds else "DISAGREES with its predictions"
    say(console, f"{name} {verdict}; {seconds:.1f} s; wrote {folder / name}.json and .png")
    return result


def _refuse_law(name: str, overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """A law for an experiment that has its own."""
    given = [o for o in overrides if o.partition("=")[0].partition(".")[0] == _LAW]
    if given and _LAW not in compose("lab", [f"{_GROUP}={name}"], folders).plain(_GROUP):
        raise UserError(
            f"the experiment {name} has laws of its own, got {given[0]!r}; "
            "`dlm lab plans law=NAME` takes any"
        )


def _placed(override: str) -> str:
    """An override where Hydra looks for it: a law in its group, other settings under lab."""
    key, equals, value = override.partition("=")
    if key == _LAW:
        return f"{_LAW}@{_GROUP}.{_LAW}{equals}{value}"
    if _is_root(key) or key.lstrip("+~").startswith(f"{_GROUP}."):
        return override
    return f"{_GROUP}.{override}"


def _line(claim: Claim) -> str:
    verdict = "agrees   " if claim.holds else "DISAGREES"
    slack = f" +- {claim.tolerance:.2g}" if claim.tolerance else ""
    numbers = f"{claim.measured:.5g} {_SIGNS[claim.relation]} {claim.predicted:.5g}{slack}"
    return f"  {verdict}  {numbers:<32}  {claim.name} [{claim.source}]"


def _write(
    folder: Path,
    name: str,
    experiment: Experiment,
    settings: dict[str, Any],
    result: Result,
    seconds: float,
) -> None:
    content = {
        "experiment": name,
        "about": experiment.about,
        "settings": settings,
        "version": dlm.__version__,
        "seconds": round(seconds, 2),
        **result.plain(),
    }
    path = folder / f"{name}.json"
    write_text(str(path), json.dumps(content, indent=2, allow_nan=False) + "\n")
    result.figure(folder / f"{name}.png", f"{name}: {experiment.about}")
