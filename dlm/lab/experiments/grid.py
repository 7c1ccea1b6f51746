"""The best levels for a number of steps.

A grid loses the sum of its step costs, so the best one is a cheapest path through candidate levels.
For masks the cost depends on the loss g(alpha) alone; for many steps the best levels have density
sqrt(-g'), and K times the loss goes to (int sqrt(-g'))^2 / 2, against int -g' / 2 for even levels
(Cauchy and Schwarz: never better). For uniform noise the step costs are computed from entropies,
and levels even in alpha are far from the best.

Source: derived here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dlm.lab import exact
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series, slope_line
from dlm.lab.experiments.tables import LINEAR, correlated_table, process_of
from dlm.lab.laws import Lazy, MarkovChain
from dlm.lab.oracle import Oracle
from dlm.lab.rates import (
    cheapest_path,
    continuum_grid,
    known_information,
    masked_path_kl,
    step_cost,
)
from dlm.samplers import Ancestral, CosineGrid, EvenGrid
from dlm.samplers.grids import best_grid


@final
@dataclass(frozen=True)
class OptimalGrid(Experiment):
    """Dynamic programming against even and cosine levels.

    Args:
        length: L of the masked law, a Markov chain.
        symbols, stay: of the chain.
        steps: K.
        points: candidate levels for masks.
        candidates: candidate levels for uniform noise.
        small: K for uniform noise, on a random law of three tokens over three symbols.
        seed: of that law.
    """

    about: ClassVar[str] = "the best levels: dynamic programming, and the law sqrt(-g')"
    length: int = 64
    symbols: int = 4
    stay: float = 0.95
    steps: tuple[int, ...] = (4, 8, 16, 32, 64)
    points: int = 513
    candidates: int = 33
    small: int = 8
    seed: int = 0

    def run(self) -> Result:
        """Masks from the curve, uniform noise from a small table."""
        panels, claims = self._masked()
        panel, more = self._uniform()
        return Result((*panels, panel), (*claims, *more))

    def _masked(self) -> tuple[list[Panel], list[Claim]]:
        curve = MarkovChain(self.length, self.symbols, Lazy(self.stay)).exact_curve()
        alpha = np.linspace(0, 1, self.points)
        loss = torch.from_numpy(-known_information(curve, alpha))  # g up to a constant
        found, grids = {}, {}
        for k in self.steps:
            grids["best"] = best_grid(torch.from_numpy(alpha), loss, k).numpy()
            grids["even"] = EvenGrid().levels(k, LINEAR).numpy()
            grids["cosine"] = CosineGrid().levels(k, LINEAR).numpy()
            grids["sqrt(-g')"] = continuum_grid(curve, k).levels
            for name, levels in grids.items():
                found.setdefault(name, []).append(masked_path_kl(curve, levels))
        constant = continuum_grid(curve, 1).constant
        series = [Series(name, self.steps, values) for name, values in found.items()]
        limit = [constant / k for k in self.steps]
        series.append(Series("(int sqrt(-g'))^2 / 2K", self.steps, limit, "predicted"))
        series.append(slope_line(self.steps, found["even"][0], -1))
        shares = [i / self.steps[-1] for i in range(self.steps[-1] + 1)]
        levels = [
            Series(name, shares, values.tolist(), "predicted" if "sqrt" in name else "measured")
            for name, values in grids.items()
        ]
        places = Panel(
            f"levels, K = {self.steps[-1]}", "k / K", "alpha", (*levels,), log_x=False, log_y=False
        )
        error = Panel("masks, Markov chain", "steps", "path KL, nats", (*series,))
        return [error, places], self._masked_claims(found, grids, constant)

    def _masked_claims(
        self, found: dict[str, list[float]], grids: dict[str, np.ndarray], constant: float
    ) -> list[Claim]:
        best, most = found["best"], self.steps[-1]
        worse = max(
            b / o for name in ("even", "cosine") for b, o in zip(best, found[name], strict=True)
        )
        gap = float(np.abs(grids["best"] - grids["sqrt(-g')"]).max())
        return [
            Claim("masks: best over even or cosine, largest", worse, 1.0, 1e-3, "derived here",
                  "at most"),
            Claim(f"masks: K times the best loss, K = {most}", best[-1] * most, constant,
                  0.1 * constant, "derived here"),
            Claim(f"masks: quantiles of sqrt(-g') over the best, K = {most}",
                  found["sqrt(-g')"][-1] / best[-1], 1.0, 0.02, "derived here"),
            Claim(f"masks: largest gap between their levels, K = {most}", gap, 0.0, 0.03,
                  "derived here"),
        ]  # fmt: skip

    def _uniform(self) -> tuple[Panel, list[Claim]]:
        table, process = correlated_table(3, 3, self.seed), process_of("uniform", 3)
        levels = torch.linspace(0, 1, self.candidates, dtype=torch.float64)
        # finer where the noise is nearly gone: that is where uniform noise loses most
        levels = torch.sin(levels * (torch.pi / 2))
        levels[0], levels[-1] = 0.0, 1.0
        times = process.schedule.inverse(levels)
        cost = np.zeros((self.candidates, self.candidates))
        for i in range(self.candidates):
            for j in range(i + 1, self.candidates):
                cost[i, j] = step_cost(table, process, times[j], times[i])
        path, total = cheapest_path(cost, self.small)

        def lost(alpha: Tensor) -> float:
            t = process.schedule.inverse(alpha)
            return exact.path_kl(table, Oracle(table, process), Ancestral(), t).item()

        best = levels[path]
        even = EvenGrid().levels(self.small, LINEAR)
        cosine = CosineGrid().levels(self.small, LINEAR)
        shares = [i / self.small for i in range(self.small + 1)]
        errors = {"best": lost(best), "even": lost(even), "cosine": lost(cosine)}
        lines = [
            Series(f"{name}: {errors[name]:.4f} nats", shares, grid.tolist())
            for name, grid in (("best", best), ("even", even), ("cosine", cosine))
        ]
        panel = Panel(
            f"uniform noise, K = {self.small}", "k / K", "alpha", (*lines,), log_x=False,
            log_y=False,
        )  # fmt: skip
        return panel, [
            Claim("uniform: path KL of the best levels against their step costs", errors["best"],
                  total, 1e-9, "derived here"),
            Claim("uniform: best over even", errors["best"] / errors["even"], 0.8, 0.0,
                  "ours", "at most"),
            Claim("uniform: best over cosine", errors["best"] / errors["cosine"], 0.8, 0.0,
                  "ours", "at most"),
        ]  # fmt: skip
