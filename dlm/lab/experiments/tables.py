"""Small laws and processes that several experiments share, and a common mistake."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from dlm.denoiser import Context, Predictor
from dlm.errors import UserError
from dlm.lab import exact
from dlm.lab.oracle import Oracle
from dlm.processes import Absorbing, Hybrid, Prediction, Process, State, Uniform
from dlm.samplers import Kernel
from dlm.schedules import Linear

LINEAR = Linear()
NOISES = ("absorbing", "uniform", "hybrid")


def process_of(noise: str, symbols: int) -> Process:
    """A process over V symbols, on the linear schedule.

    Raises:
        UserError: for an unknown noise.
    """
    if noise == "absorbing":
        return Absorbing(num_states=symbols + 1, mask_id=symbols, schedule=LINEAR)
    if noise == "uniform":
        return Uniform(num_states=symbols, schedule=LINEAR)
    if noise == "hybrid":
        return Hybrid(symbols + 1, symbols, 0.2, LINEAR)
    raise UserError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")


def correlated_table(symbols: int, length: int, seed: int) -> Tensor:
    """A random law with full support, far from a product: cubes of uniforms, float64 (V,) * L."""
    values = np.random.default_rng(seed).uniform(size=[symbols] * length) ** 3 + 1e-3
    return torch.from_numpy(values / values.sum())


def product_table(symbols: int, length: int, seed: int) -> Tensor:
    """Independent tokens with different laws."""
    generator = np.random.default_rng(seed)
    table = torch.ones((), dtype=torch.float64)
    for _ in range(length):
        row = torch.from_numpy(generator.dirichlet(np.ones(symbols)))
        table = table[..., None] * row
    return table


def repeated_table(symbols: int, length: int) -> Tensor:
    """X_1 = ... = X_L, uniform."""
    table = torch.zeros([symbols] * length, dtype=torch.float64)
    index = torch.arange(symbols)
    table[(index,) * length] = 1 / symbols
    return table


def pairs_table(symbols: int, length: int) -> Tensor:
    """X_1 = X_2, X_3 = X_4, ..., uniform and independent."""
    table = torch.ones((), dtype=torch.float64)
    for _ in range(length // 2):
        pair = torch.eye(symbols, dtype=torch.float64) / symbols
        table = table[..., None, None] * pair
    return table


def even_times(process: Process, steps: int) -> Tensor:
    """Times of even levels, from noise to data."""
    return process.schedule.inverse(torch.linspace(0, 1, steps + 1, dtype=torch.float64))


def path_kl(table: Tensor, process: Process, kernel: Kernel, steps: int) -> float:
    """Path KL of a kernel with the exact posterior on even levels, every path enumerated."""
    times = even_times(process, steps)
    return exact.path_kl(table, Oracle(table, process), kernel, times).item()


@final
class DenoiserPluggedIn:
    """The exact denoiser where the leave-one-out posterior belongs: a common mistake."""

    def __init__(self, oracle: Predictor) -> None:
        self.oracle, self.process = oracle, oracle.process
        self.time_conditioning = oracle.time_conditioning

    def passes(self, length: int) -> int:
        """One."""
        return 1

    def hidden(self, state: State, t: Tensor, context: Context | None = None) -> Tensor:
        """That of the oracle."""
        return self.oracle.hidden(state, t, context)

    def predict(self, hidden: Tensor, state: State, t: Tensor) -> Prediction:
        """The denoiser under the other's name."""
        right = self.oracle.predict(hidden, state, t)
        return Prediction(self.process, state, t, log_loo=right.log_denoiser)
