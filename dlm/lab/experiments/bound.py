"""The K-step bound exceeds the entropy by exactly what the K-step sampler loses.

With the exact posterior, for every process,

    E NELBO_K - H(X) = sum_k step cost = path KL of the ancestral sampler,

three numbers that are computed in three ways: the bound as the expected divergence of the
process's reverse step from its bridge (`bridge_kl`), the step costs from entropies of noised laws
(`dlm.lab.rates`), the path KL by pushing every pair of states through the kernel
(`dlm.lab.exact`). So a gap of a trained model's K-step bound is part discretisation, which is
known, and part approximation.

Source: derived here, from Dmitriev, Huang & Wei 2026, theorem 2, and the chain rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, final

import torch
from torch import Tensor

from dlm.lab import exact
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series, slope_line
from dlm.lab.experiments.tables import (
    NOISES,
    correlated_table,
    even_times,
    path_kl,
    process_of,
)
from dlm.lab.oracle import Oracle
from dlm.lab.rates import step_cost
from dlm.processes import Process, State
from dlm.samplers import Ancestral


@final
@dataclass(frozen=True)
class Bound(Experiment):
    """Gap of the K-step bound at the exact posterior.

    Args:
        steps: K.
        symbols, length, seed: of the law.
    """

    about: ClassVar[str] = "the K-step bound minus the entropy is the sum of the step costs"
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    symbols: int = 3
    length: int = 3
    seed: int = 0

    def run(self) -> Result:
        """Three noises, by enumeration."""
        table = correlated_table(self.symbols, self.length, self.seed)
        entropy, series, claims = float(exact.entropy(table)), [], []
        for noise in NOISES:
            process = process_of(noise, self.symbols)
            gaps = [expected_bound(table, process, k) - entropy for k in self.steps]
            costs = [self._costs(table, process, k) for k in self.steps]
            path = [path_kl(table, process, Ancestral(), k) for k in self.steps]
            series.append(Series(f"{noise}: NELBO_K - H", self.steps, gaps))
            series.append(Series(f"{noise}: step costs", self.steps, costs, "predicted"))
            for name, other in (("sum of step costs", costs), ("path KL", path)):
                off = max(abs(a - b) for a, b in zip(gaps, other, strict=True))
                text = f"{noise}: NELBO_K - H against {name}, largest gap in nats"
                claims.append(Claim(text, off, 0.0, 1e-9, "derived here"))
        series.append(slope_line(self.steps, series[0].y[0], -1))
        panel = Panel("gap of the K-step bound", "steps", "nats per sequence", (*series,))
        return Result((panel,), (*claims,))

    def _costs(self, table: Tensor, process: Process, steps: int) -> float:
        times = even_times(process, steps)
        return sum(step_cost(table, process, s, t) for t, s in pairwise(times))


def expected_bound(table: Tensor, process: Process, steps: int) -> float:
    """E NELBO_K at the exact posterior on even levels, nats per sequence; the prior costs 0."""
    oracle, length = Oracle(table, process), table.ndim
    states = State(exact.all_states(process.num_states, length))
    clean = exact.all_states(table.shape[0], length)
    total = 0.0
    for t, s in pairwise(even_times(process, steps)):
        times = t.expand(states.tokens.shape)
        prediction = oracle.predict(oracle.hidden(states, t[None]), states, times)
        noisy = exact.product_law(exact.rows_of(exact.channel(process, t), clean))
        for x0, chance, row in zip(clean, table.flatten(), noisy, strict=True):
            nats = process.bridge_kl(prediction, x0.expand_as(states.tokens), s).sum(-1)
            total += float(chance * torch.where(row > 0, row * nats, 0.0).sum())
    return total
