"""How fast the error falls with the number of steps, for every kernel.

The law of a sampler is pushed through exactly, so that errors far below sampling noise are seen.
Predicted: path KL falls like 1 / K (step costs are a left Riemann error), so does the terminal
total variation. The terminal KL falls like 1 / K^2 where the law has full support (KL is quadratic
in a small error) and like 1 / K where the sampler puts mass on impossible sequences; in general
between the two. Other integral probability metrics are at most total variation times the range of
their functions, and of order 1 too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from torch import Tensor

from dlm.lab import exact, pushed
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series, slope_line
from dlm.lab.experiments.tables import correlated_table, pairs_table, path_kl, process_of
from dlm.lab.metrics import KernelDiscrepancy, LocalVariation, Metric, TotalVariation
from dlm.lab.oracle import Oracle
from dlm.lab.rates import masked_path_kl, order, table_curve
from dlm.processes import Process
from dlm.samplers import (
    Ancestral,
    Euler,
    EvenGrid,
    GridSampler,
    Kernel,
    MaximalCoupling,
    SampledX0,
    TauLeaping,
)

_NOISES = ("absorbing", "uniform")
_RATES = "Dmitriev, Huang & Wei 2026, arXiv:2602.15008; Liang et al. 2026, arXiv:2602.22505"


@final
@dataclass(frozen=True)
class Steps(Experiment):
    """Errors against steps on a small correlated law.

    Args:
        steps: K, at least four of them.
        symbols, length, seed: of the law.
        slack: of a slope; twice as much for kernels that hold rates over a step, and for further
            metrics (under uniform noise their slopes approach 1 slowly, as by a factor log K).
        metrics: further distances (`dlm.lab.metrics`) for the ancestral sampler.
    """

    about: ClassVar[str] = "error against steps: path KL and total variation have order 1"
    steps: tuple[int, ...] = (8, 16, 32, 64, 128)
    symbols: int = 3
    length: int = 3
    seed: int = 0
    slack: float = 0.1
    metrics: tuple[Metric, ...] = (LocalVariation(2), KernelDiscrepancy(0.5))

    def run(self) -> Result:
        """Push every kernel through."""
        table = correlated_table(self.symbols, self.length, self.seed)
        kernels = (Ancestral(), SampledX0(), MaximalCoupling(), Euler(), TauLeaping())
        panels, claims = [], []
        for noise in _NOISES:
            process = process_of(noise, self.symbols)
            series = []
            for kernel in kernels:
                laws = self._laws(table, process, kernel)
                tv, kl = self._terminal(table, process, laws)
                name = type(kernel).__name__
                series.append(Series(f"{name}: TV", self.steps, tv))
                claims.append(self._order_one(f"{noise}, {name}: order of terminal TV", tv, kernel))
                if isinstance(kernel, Ancestral):
                    path = [path_kl(table, process, kernel, k) for k in self.steps]
                    series += [
                        Series(f"{name}: path KL", self.steps, path),
                        Series(f"{name}: terminal KL", self.steps, kl),
                    ]
                    claims += self._ancestral(noise, path, kl)
                    for metric in self.metrics:
                        found = self._distances(table, process, laws, metric)
                        series.append(Series(f"{name}: {metric}", self.steps, found))
                        rate = order(self.steps, found)
                        claims.append(
                            Claim(
                                f"{noise}, {name}: order of {metric}", rate, 1.0, 2 * self.slack,
                                "derived here", reference="at most a multiple of TV",
                            )
                        )  # fmt: skip
            terminal_kl = next(line for line in series if "terminal KL" in line.label)
            series += [
                slope_line(self.steps, series[0].y[0], -1),
                slope_line(self.steps, terminal_kl.y[0], -2),
            ]
            panels.append(Panel(f"{noise} noise", "steps", "nats, or total variation", (*series,)))
        claims += [*self._masked(table), self._narrow()]
        return Result((*panels,), (*claims,))

    def _laws(self, table: Tensor, process: Process, kernel: Kernel) -> list[Tensor]:
        oracle = Oracle(table, process)
        return [
            pushed.grid_law(GridSampler(kernel, EvenGrid(), steps=steps), oracle, table.ndim)
            for steps in self.steps
        ]

    def _terminal(
        self, table: Tensor, process: Process, laws: list[Tensor]
    ) -> tuple[list[float], list[float]]:
        target = exact.embed(table, process)
        tv = self._distances(table, process, laws, TotalVariation())
        return tv, [exact.kl(target, law).item() for law in laws]

    def _distances(
        self, table: Tensor, process: Process, laws: list[Tensor], metric: Metric
    ) -> list[float]:
        target = exact.embed(table, process)
        return [metric(target, law, process.num_states).item() for law in laws]

    def _order_one(self, name: str, values: list[float], kernel: Kernel) -> Claim:
        slack = self.slack * (2 if isinstance(kernel, Euler | TauLeaping) else 1)
        return Claim(name, order(self.steps, values), 1.0, slack, "paper", reference=_RATES)

    def _ancestral(self, noise: str, path: list[float], kl: list[float]) -> list[Claim]:
        rate, slope = order(self.steps, path), order(self.steps, kl)
        terminal = f"{noise}, Ancestral: order of terminal KL"
        worst = max(k - p for k, p in zip(kl, path, strict=True))
        return [
            Claim(
                f"{noise}, Ancestral: order of path KL", rate, 1.0, self.slack, "paper",
                reference="Dmitriev, Huang & Wei 2026, theorem 2",
            ),
            Claim(f"{terminal}, above 1", slope, 1.0, 0.0, "derived here", "at least"),
            Claim(f"{terminal}, at most 2", slope, 2.0, self.slack, "derived here", "at most"),
            Claim(
                f"{noise}, Ancestral: terminal KL minus path KL", worst, 0.0, 1e-12,
                "derived here", "at most", "data processing",
            ),
        ]  # fmt: skip

    def _masked(self, table: Tensor) -> list[Claim]:
        process, few = process_of("absorbing", self.symbols), self.steps[0]
        laws = [
            pushed.grid_law(
                GridSampler(k, EvenGrid(), steps=few), Oracle(table, process), table.ndim
            )
            for k in (Euler(), Ancestral())
        ]
        known = masked_path_kl(table_curve(table), np.linspace(0, 1, few + 1))
        pushed_kl = path_kl(table, process, Ancestral(), few)
        return [
            Claim(
                "absorbing: TV between Euler and ancestral, linear schedule",
                exact.total_variation(*laws).item(), 0.0, 1e-12, "derived here",
            ),
            Claim(
                f"absorbing: path KL of {few} steps, pushed against information curve",
                pushed_kl, known, 1e-10, "derived here",
            ),
        ]  # fmt: skip

    def _narrow(self) -> Claim:
        """Terminal KL on a law with impossible sequences."""
        table, process = pairs_table(self.symbols, 2), process_of("absorbing", self.symbols)
        _, kl = self._terminal(table, process, self._laws(table, process, Ancestral()))
        name = "absorbing, pairs (narrow support): order of terminal KL"
        return Claim(name, order(self.steps, kl), 1.0, self.slack, "derived here")
