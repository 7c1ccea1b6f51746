"""Small laws and predictors that many tests share."""

import torch
from torch import Tensor

from dlm import Absorbing, Prediction, Process, State, Uniform
from dlm.lab import Oracle, exact
from dlm.processes import Hybrid, LiftedUniform, Prior, pack_weights
from dlm.schedules import Linear, Schedule

SYMBOLS = 3
LINEAR = Linear()


def absorbing(schedule: Schedule = LINEAR, symbols: int = SYMBOLS) -> Absorbing:
    return Absorbing(num_states=symbols + 1, mask_id=symbols, schedule=schedule)


def uniform(schedule: Schedule = LINEAR, symbols: int = SYMBOLS) -> Uniform:
    return Uniform(num_states=symbols, schedule=schedule)


def hybrid(schedule: Schedule = LINEAR, symbols: int = SYMBOLS, fraction: float = 0.2) -> Hybrid:
    return Hybrid(symbols + 1, symbols, fraction, schedule)


def lifted(schedule: Schedule = LINEAR, symbols: int = SYMBOLS) -> LiftedUniform:
    return LiftedUniform(symbols, schedule)


def prior(schedule: Schedule = LINEAR, symbols: int = SYMBOLS) -> Prior:
    return Prior(symbols, pack_weights([1.0 + v % 5 for v in range(symbols)]), schedule)


def processes(schedule: Schedule = LINEAR, symbols: int = SYMBOLS) -> list[Process]:
    made = (absorbing, uniform, hybrid, lifted, prior)
    return [make(schedule, symbols) for make in made]


def some_noise(process: Process, length: int) -> Tensor | None:
    """One noise (L,) for a whole enumeration, where the process keeps it."""
    return torch.arange(2, 2 - length, -1) % SYMBOLS if process.noise_conditioned else None


def correlated_law(symbols: int = SYMBOLS, length: int = 3, seed: int = 0) -> Tensor:
    """A random table with full support, far from a product."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand([symbols] * length, generator=generator, dtype=torch.float64) ** 3 + 1e-3
    return table / table.sum()


def product_table(symbols: int = SYMBOLS, length: int = 3, seed: int = 0) -> Tensor:
    """Independent tokens with different laws."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.ones((), dtype=torch.float64)
    for _ in range(length):
        row = torch.rand(symbols, generator=generator, dtype=torch.float64) + 0.1
        table = table[..., None] * (row / row.sum())
    return table


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def everywhere(process: Process, law: Tensor, t: Tensor) -> tuple[State, Prediction, Tensor]:
    """All states, the oracle's prediction at time t there, and which states the law can reach."""
    noise = some_noise(process, law.ndim)
    states = exact.with_noise(exact.all_states(process.num_states, law.ndim), noise)
    oracle = Oracle(law, process)
    times = t.expand(states.tokens.shape)
    prediction = oracle.predict(oracle.hidden(states, t[None]), states, times)
    return states, prediction, exact.noised_law(law, process, t, noise) > 0
