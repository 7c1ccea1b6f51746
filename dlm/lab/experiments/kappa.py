"""Uniform noise with steps that shrink towards the data: error kappa DTC, whatever the length.

On alpha = exp(-u) the leave-one-out sampler takes steps h <= kappa min(1, u - h). Then

    KL <= (noise left at the start) + const kappa DTC(X_0),

so on the repeated bit, whose dual total correlation is log 2 for every L, the path KL is linear in
kappa and flat in L. Tau-leaping, which holds rates over a step, needs a number of steps that grows
with L: at the same steps its error grows with the length while that of the leave-one-out sampler
does not.

Everything is exact: path KL and terminal KL by counts (`dlm.lab.symmetry`, `dlm.lab.bits`). The
terminal KL is measured at a small noise time, as the theorems do. Our own tau-leaping kernel ends
with an ancestral step, and on this law that last step is a vote of all tokens that mends the rest.

Sources: Dmitriev, Huang & Wei 2026 (uniform noise, leave-one-out sampler); 2026,
arXiv:2602.15008, theorem 2 (tau-leaping).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from dlm.lab.bits import RepeatedBit, Turn, leave_one_out, tau_leaping
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series, slope_line
from dlm.lab.rates import order
from dlm.lab.symmetry import RepeatedUniform

_LOO = "Dmitriev, Huang & Wei 2026 (uniform noise: N of order DTC / eps)"
_TAU = "Dmitriev, Huang & Wei 2026, arXiv:2602.15008, theorem 2"


@final
@dataclass(frozen=True)
class Kappa(Experiment):
    """The repeated bit under uniform noise.

    Args:
        kappas: falling.
        lengths: L, for the path KL.
        start, end: noise times u at which the steps begin, and end before a last one to 0.
        short: L, for the terminal KL.
        coarse: kappa of its steps.
        stop: u at which it is measured, before the last step to 0, which would mend most of it.
    """

    about: ClassVar[str] = "uniform noise: path KL linear in kappa, flat in length at fixed DTC"
    kappas: tuple[float, ...] = (0.5, 0.25, 0.125, 0.0625)
    lengths: tuple[int, ...] = (16, 64, 256)
    start: float = 10.0
    end: float = 1e-4
    short: tuple[int, ...] = (4, 8, 16, 32, 64)
    coarse: float = 0.5
    stop: float = 0.01

    def run(self) -> Result:
        """Path KL and terminal KL by counts."""
        path = {n: self._path(n) for n in self.lengths}
        series = [Series(f"L = {n}", self.kappas, values) for n, values in path.items()]
        bound = [k * math.log(2) for k in self.kappas]
        series.append(Series("kappa DTC", self.kappas, bound, "predicted"))
        series.append(slope_line(self.kappas, series[0].y[0], 1))
        first = Panel("leave-one-out sampler, repeated bit", "kappa", "path KL, nats", (*series,))
        loo, tau = self._terminal(leave_one_out), self._terminal(tau_leaping)
        lines = (
            Series("leave-one-out", self.short, loo),
            Series("tau-leaping", self.short, tau),
        )
        lines = (*lines, slope_line(self.short, tau[0], 1))
        title = f"kappa = {self.coarse:g}, stopped at u = {self.stop:g}"
        second = Panel(title, "length", "terminal KL, nats", lines)
        claims = [
            *self._scaling(path),
            Claim("tau-leaping: order of terminal KL in L", -order(self.short, tau), 1.0, 0.2,
                  "paper", reference=_TAU),
            Claim("leave-one-out: order of terminal KL in L", -order(self.short, loo), 0.0, 0.0,
                  "paper", "at most", _LOO),
            Claim("tau-leaping over leave-one-out, longest", tau[-1] / loo[-1], 10.0, 0.0,
                  "ours", "at least"),
        ]  # fmt: skip
        return Result((first, second), (*claims,))

    def _path(self, length: int) -> list[float]:
        law = RepeatedUniform(2, length)
        return [law.path_kl(shrinking_levels(k, self.start, self.end)) for k in self.kappas]

    def _scaling(self, path: dict[int, list[float]]) -> list[Claim]:
        longest, shorter = path[self.lengths[-1]], path[self.lengths[-2]]
        worst = max(
            v / (k * math.log(2))
            for row in path.values()
            for k, v in zip(self.kappas, row, strict=True)
        )
        flat = max(abs(a / b - 1) for a, b in zip(longest, shorter, strict=True))
        name = f"L = {self.lengths[-1]}"
        return [
            Claim(f"{name}: order of path KL in kappa", -order(self.kappas, longest), 1.0, 0.1,
                  "paper", reference=_LOO),
            Claim(f"{name} against L = {self.lengths[-2]}: largest relative gap", flat, 0.0, 0.03,
                  "paper", reference=_LOO),
            Claim("path KL over kappa DTC, largest", worst, 1.0, 0.0, "ours", "at most",
                  "the constant of the theorem is not given"),
        ]  # fmt: skip

    def _terminal(self, turn: Turn) -> list[float]:
        levels = shrinking_levels(self.coarse, self.start, self.stop)[:-1]
        return [RepeatedBit(n).terminal_kl(levels, turn) for n in self.short]


def shrinking_levels(kappa: float, start: float, end: float) -> np.ndarray:
    """Levels exp(-u) for u from `start` down to below `end`, then 0, with h <= kappa min(1, u - h).

    h = kappa / (1 + kappa) min(1, u): for u <= 1 the largest step of the rule.
    """
    times = [start]
    while times[-1] > end:
        times.append(times[-1] - kappa / (1 + kappa) * min(1.0, times[-1]))
    return np.exp(-np.array([*times, 0.0]))
