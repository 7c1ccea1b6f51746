"""What must be right about the settings of the Lightning trainer, and silence for the rest."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from dlm.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuse settings that Lightning would silently change or answer with a traceback.

    Args:
        settings: the arguments of the trainer, as in `configs/trainer`.

    Raises:
        UserError: naming the key, the value and what to do.
    """
    _check_length(settings)
    _check_validation(settings)
    precision = settings.get("precision", "32-true")
    if str(precision) not in PRECISIONS:
        raise UserError(
            f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {precision}"
        )
    accelerator = settings.get("accelerator", "auto")
    cuda = torch.cuda.is_available()
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and cuda)
    if on_gpu and not cuda:
        raise UserError(
            f"trainer.accelerator={accelerator} needs a CUDA device and none was found; use cpu"
        )
    if precision == "16-mixed" and not on_gpu:
        raise UserError(
            "trainer.precision=16-mixed needs a GPU (a CPU would silently compute in bf16); "
            "use bf16-mixed or 32-true"
        )


def _check_length(settings: Mapping[str, Any]) -> None:
    steps = settings.get("max_steps", -1)
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"trainer.max_steps must be a number of steps from 1 on, got {steps}")
    window = settings.get("accumulate_grad_batches", 1)
    if not isinstance(window, int) or window < 1:
        raise UserError(f"trainer.accumulate_grad_batches must be an int from 1 on, got {window}")
    clip = settings.get("gradient_clip_val")
    if clip is not None and clip < 0:
        raise UserError(
            f"trainer.gradient_clip_val must be at least 0, got {clip}; null does not clip"
        )
    every = settings.get("log_every_n_steps", 50)
    if not isinstance(every, int) or every < 1:
        raise UserError(f"trainer.log_every_n_steps must be an int from 1 on, got {every}")


def _check_validation(settings: Mapping[str, Any]) -> None:
    """Validation goes by batches, and ends whole steps: else a resumed run could not repeat it."""
    if settings.get("check_val_every_n_epoch") is not None:
        raise UserError(
            "trainer.check_val_every_n_epoch must be null; use trainer.val_check_interval=BATCHES"
        )
    interval = settings.get("val_check_interval")
    window = settings.get("accumulate_grad_batches", 1)
    if not isinstance(interval, int) or interval < 1:
        raise UserError(f"trainer.val_check_interval must be a number of batches, got {interval}")
    if interval % window:
        raise UserError(
            f"trainer.val_check_interval must be a multiple of accumulate_grad_batches={window}, "
            f"got {interval}; try {interval - interval % window or window}"
        )


def quiet_lightning() -> None:
    """Keep Lightning's advertisements and remarks about our data loaders off the screen."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are cut from a memory map: none are needed
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*sync_dist=True.*",  # the bound is reduced already
    ):
        warnings.filterwarnings("ignore", message)
