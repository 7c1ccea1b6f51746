"""What `configs/` holds, built by the program's own means on a small vocabulary.

The folder is the registry: a new yaml is found, composed and tested without an edit here.
"""

from pathlib import Path

import pytest
import torch

from dlm.cli.compose import Config, compose
from dlm.processes import pack_weights
from dlm.random import Key
from dlm.spec import build

CONFIGS = Path(__file__).parents[2] / "configs"
SYMBOLS = 3


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


def built(group: str, name: str, *overrides: str):
    return build(composed(f"{group}={name}", *overrides).plain(group), trust=("dlm",))


def every(group: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(group, names(group))


def key(batch: int = 6) -> Key:
    return Key(0, torch.arange(batch))
