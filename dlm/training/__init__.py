"""Training: the Lightning module, optimizer and schedules, callbacks, loggers."""

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
