"""A tiny run: the smallest of everything, on data that are a function of the row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dlm import Denoiser
from dlm.data import Batch
from dlm.networks import DiT
from dlm.objectives import Elbo
from dlm.parameterizations import Denoising
from dlm.processes import Absorbing
from dlm.random import Key
from dlm.schedules import Linear
from dlm.times import LowDiscrepancy
from dlm.training import EMA, AdamW, Checkpoints, Constant, DiffusionModule, MetricsCSV

K, L = 11, 8


def rows(indices: list[int] | range, ragged: bool = True) -> Batch:
    """Sequences that are functions of their index; the valid lengths differ if ragged."""
    index = torch.tensor(list(indices))
    tokens = (Key(7, index % 50).uniform(L) * (K - 1)).long()
    lengths = 1 + index % L if ragged else torch.full_like(index, L)
    valid = torch.arange(L) < lengths[:, None]
    return Batch(tokens, valid, None, index)


class Loader:
    """Batches of global rows, longer than any run here; sized and with a state, as in dlm.data."""

    def __init__(self, per_device: int, rank: int = 0, world: int = 1) -> None:
        self.per_device, self.rank, self.world = per_device, rank, world
        self.count = 0

    def __len__(self) -> int:
        return 10_000

    def __iter__(self) -> Iterator[Batch]:
        while True:
            first = (self.count * self.world + self.rank) * self.per_device
            self.count += 1
            yield rows(range(first, first + self.per_device))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def denoiser(dropout: float = 0.0) -> Denoiser:
    """A network with fixed weights."""
    torch.manual_seed(0)
    process = Absorbing(num_states=K, mask_id=K - 1, schedule=Linear())
    net = DiT(K, L, 16, 1, 2, time_conditioning=False, dropout=dropout)
    return Denoiser(net, process, Denoising())


def module(batch_size: int, dropout: float = 0.0, **settings: Any) -> DiffusionModule:
    """The module around it."""
    return DiffusionModule(
        settings.pop("denoiser", None) or denoiser(dropout),
        settings.pop("objective", Elbo()),
        settings.pop("times", LowDiscrepancy()),
        AdamW(lr=0.01),
        Constant(warmup_steps=2),
        seed=3,
        batch_size=batch_size,
        draws=2,
        num_bytes=100,
        epoch_size=50,
        **settings,
    )


def trainer(folder: Path, steps: int, *, save: int = 100, **settings: Any) -> lightning.Trainer:
    """A trainer with everything that resuming touches."""
    callbacks = [EMA(decay=0.9), Checkpoints(folder / "checkpoints", every_n_train_steps=save)]
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": steps,
        "max_epochs": -1,
        "gradient_clip_val": 1.0,
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": [MetricsCSV(folder)],
        "callbacks": callbacks + settings.pop("callbacks", []),
    }
    return lightning.Trainer(**(defaults | settings))


def validation() -> DataLoader:
    """Six sequences."""
    return DataLoader([rows(range(3)), rows(range(3, 6))], batch_size=None)


def tensors(value: Any, path: str = "") -> dict[str, Tensor | Any]:
    """The leaves of a checkpoint by their paths."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {path: value}
    return {k: v for key, item in items for k, v in tensors(item, f"{path}/{key}").items()}
