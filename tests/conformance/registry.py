"""What `configs/` holds, built by the program's own means on a small vocabulary.

The folder is the registry: a new yaml is found, composed and tested without an edit here.
"""

import functools
import json
import os
from pathlib import Path

import pytest
import torch

from dlm.cli.compose import Config, compose
from dlm.files import replace_text
from dlm.processes import pack_weights
from dlm.random import Key
from dlm.spec import build

CONFIGS = Path(__file__).parents[2] / "configs"
SYMBOLS = 3
# What `dlm profile` writes, for the options that read it.
PROFILE = {
    "kind": "information_curve",
    "length": 3,
    "values": [0.0, 0.2, 0.5],
    "stderr": None,
    "grid": {"alpha": [0.0, 0.25, 0.5, 0.75, 1.0], "loss": [3.0, 2.0, 1.5, 0.5, 0.0]},
}


def names(group: str) -> list[str]:
    found = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    assert found, f"configs/{group} is empty"
    return found


def composed(*overrides: str) -> Config:
    """`dlm train` with these overrides, its vocabulary filled in as the program does."""
    config = compose("train", list(overrides))
    masked = config.mentions("process", "vocab.mask_id")
    config.set("vocab.size", SYMBOLS + masked)
    config.set("vocab.mask_id", SYMBOLS if masked else None)
    config.set("vocab.unigram", pack_weights([1.0, 2.0, 4.0]))
    return config


@functools.cache  # composing takes longer than most tests; nothing that is built has a state
def built(group: str, name: str, *overrides: str):
    return build(composed(f"{group}={name}", *overrides).plain(group), trust=("dlm",))


def with_profile(group: str, name: str) -> list[str]:
    """The override that names a profile, for an option that requires one."""
    if "path: ???" not in (CONFIGS / group / f"{name}.yaml").read_text("utf-8"):
        return []
    path = Path(os.environ["DLM_CACHE"]) / "profile.json"  # one place, removed at the end
    if not path.exists():
        replace_text(path, json.dumps(PROFILE))
    return [f"{group}.path={path}"]


def every(group: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(group, names(group))


def key(batch: int = 6) -> Key:
    return Key(0, torch.arange(batch))
