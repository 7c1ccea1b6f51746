"""Training: the Lightning module, optimizer and schedules, callbacks, loggers.

Names are loaded when they are first used: optimizers and checks of settings need no Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm.training.callbacks import EMA, Checkpoints, Progress
    from dlm.training.logs import MetricsCSV
    from dlm.training.module import DiffusionModule
    from dlm.training.optim import WSD, AdamW, Constant, Cosine, LearningRate
    from dlm.training.samples import LossPlot, SampleLogger
    from dlm.training.trainer import check_trainer, quiet_lightning

__all__ = [
    "EMA",
    "WSD",
    "AdamW",
    "Checkpoints",
    "Constant",
    "Cosine",
    "DiffusionModule",
    "LearningRate",
    "LossPlot",
    "MetricsCSV",
    "Progress",
    "SampleLogger",
    "check_trainer",
    "quiet_lightning",
]

_HOMES = {
    "callbacks": ("EMA", "Checkpoints", "Progress"),
    "logs": ("MetricsCSV",),
    "module": ("DiffusionModule",),
    "optim": ("WSD", "AdamW", "Constant", "Cosine", "LearningRate"),
    "samples": ("LossPlot", "SampleLogger"),
    "trainer": ("check_trainer", "quiet_lightning"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"dlm.training.{home}"), name)
    raise AttributeError(f"module 'dlm.training' has no attribute {name!r}")
