"""The folder of a run: which one, whether it may be used, and with which config a run goes on.

A folder holds a run once its `config.yaml` stands there: every key as the run uses it, under
`overrides` what the user gave, under `prepared` the fingerprints of text and tokenizer. On resume
that file decides; the lengths of the run and the devices may change, anything else that differs is
refused, because the result would be of neither config.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dlm.cli.common import is_main_process, write_text
from dlm.cli.compose import Config, compose, leaves
from dlm.cli.vocabulary import CONDITIONS
from dlm.errors import UserError

CHANGEABLE = ("trainer.max_steps", "trainer.devices")
_OF_THIS_CALL = ("run_dir", "resume")
_INHERITED = "DLM_RUN_DIR"  # tells the processes that Lightning starts which folder was chosen
_CONFIG = "config.yaml"


def choose_folder(run_dir: str | None, name: str, resume: bool) -> Path:
    """The folder of this run: `run_dir`, or `runs/<date>-<name>`, numbered where that is taken.

    Raises:
        UserError: it holds a run and `resume` is false; or there is no `run_dir` although several
            processes were started, which could not agree on one.
    """
    if not is_main_process() and run_dir is None and _INHERITED in os.environ:
        return Path(os.environ[_INHERITED])
    if run_dir is None:
        if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
            raise UserError("give run_dir=DIR when several processes are started for one run")
        folder = _dated(name, resume)
    else:
        folder = Path(run_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run_dir {str(folder)!r} is a file; name a folder")
    if is_main_process():
        if holds_run(folder) and not resume:
            raise UserError(
                f"run_dir {str(folder)!r} holds a run; add resume=true to go on with it, "
                "or name another folder"
            )
        os.environ[_INHERITED] = str(folder)
    return folder


def holds_run(folder: Path) -> bool:
    """Whether a run was started in this folder."""
    return (folder / _CONFIG).is_file() or (folder / "checkpoints").is_dir()


def save_config(folder: Path, values: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Write `config.yaml`; only the main process does.

    Raises:
        UserError: the folder cannot be written.
    """
    if is_main_process():
        saved = {**values, "overrides": [o for o in overrides if _key(o) not in _OF_THIS_CALL]}
        text = yaml.safe_dump(saved, sort_keys=False, allow_unicode=True)
        write_text(str(folder / _CONFIG), text)


def saved_config(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The config of a run and the overrides it was given.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / _CONFIG
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
        return values, values.pop("overrides")
    except (OSError, yaml.YAMLError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is missing or damaged, so the run cannot be resumed") from error


def resumed_config(
    folder: Path, overrides: Sequence[str], folders: Sequence[Path]
) -> tuple[dict[str, Any], list[str]]:
    """The config with which a run goes on, and all overrides given so far.

    Args:
        folder: a folder that holds a run.
        overrides: those of this call.
        folders: the user's folders of configs.

    Raises:
        UserError: an override that changes more than `CHANGEABLE`.
    """
    values, before = saved_config(folder)
    given = [o for o in overrides if _key(o) not in _OF_THIS_CALL]
    if not given:
        return values, before
    old, new = (compose("train", [*before, *more], folders) for more in ([], given))
    for key, (was, now) in _differences(old.written(), new.written()).items():
        if key not in CHANGEABLE:
            raise UserError(
                f"{key} cannot change on resume: the run has {was!r}, got {now!r}; only "
                f"{' and '.join(CHANGEABLE)} can, so start a new run for this"
            )
    resolved = [_resolved(config, values) for config in (old, new)]
    for key, (_, now) in _differences(*resolved).items():
        _set(values, key, now)
    return values, [*before, *given]


def _dated(name: str, resume: bool) -> Path:
    base = f"{datetime.date.today().isoformat()}-{name}"
    taken = [Path("runs") / base]
    while holds_run(taken[-1]):
        taken.append(Path("runs") / f"{base}-{len(taken) + 1}")
    return taken[-2] if resume and len(taken) > 1 else taken[-1]


def _resolved(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves after interpolation, with what the program had found out for the run."""
    for name, value in values["vocab"].items():
        config.set(f"vocab.{name}", value)
    config.set("run_dir", values["run_dir"])
    for key in CONDITIONS:
        config.set(key, values["denoiser"][key.partition(".")[2]])
    return dict(leaves(config.plain()))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = [*old, *(key for key in new if key not in old)]
    return {k: (old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)}


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        tree = tree[name]
    tree[last] = value


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
