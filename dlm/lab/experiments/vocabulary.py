"""What grows with the vocabulary, and what does not.

The structure is fixed and V grows from 2 to 10^5. Step costs know V only through TC and DTC, at
most (L - 1) log V each. So for pairs and repeated tokens

    terminal TV and KL      converge as V grows: free of the vocabulary,
    path KL                 grows like log V: a bound by path KL is not,

for masks and for uniform noise, with the same factor before log V. Of the metrics that see less,
the largest total variation of two tokens converges too, and the kernel discrepancy falls: tokens of
two sequences hardly ever agree. For independent tokens the ancestral sampler is exact in one step
whatever V. Under uniform noise tau-leaping is not, in any number. Euler's step on the linear
schedule is: the noised law is linear in alpha, so one step along its derivative stays on it. But a
rate may exceed one jump a step, at symbols that are unlikely for large V; it is cut, and from there
on Euler errs too.

Nothing is drawn: pairs and single tokens run the kernels themselves on one state of each class
(`dlm.lab.symmetry`), V = 10^5 states wide; the repeated token under uniform noise is enumerated by
counts; masks have closed forms.

Sources: Dmitriev, Huang & Wei 2026, arXiv:2602.15008 (log V in path KL); Kan et al. 2026,
arXiv:2605.17232 (bounds without V in other metrics).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch

from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series
from dlm.lab.experiments.tables import process_of
from dlm.lab.laws import Repeated
from dlm.lab.rates import masked_pairs, masked_path_kl, pair_error
from dlm.lab.symmetry import RepeatedUniform, pair_equal, pairs_discrepancy, token_chance
from dlm.samplers import Ancestral, Euler, Kernel, TauLeaping

_NOISES = ("absorbing", "uniform")
_PATH = "Dmitriev, Huang & Wei 2026, arXiv:2602.15008 (log V)"
_FREE = "Kan et al. 2026, arXiv:2605.17232 (no V in other metrics)"


@final
@dataclass(frozen=True)
class Vocabulary(Experiment):
    """Errors against V at a fixed structure.

    Args:
        symbols: V, rising.
        length: L of the pairs.
        repeats: L of the repeated token.
        steps: K.
        special: chance of the one likely symbol of the independent tokens.
        settled: how far TV and KL may still move between the last two V, relative.
        decay: of `dlm.lab.metrics.KernelDiscrepancy`.
    """

    about: ClassVar[str] = "error against vocabulary size: free of it in TV and KL, not in path KL"
    symbols: tuple[int, ...] = (2, 4, 10, 100, 1000, 10_000, 100_000)
    length: int = 16
    repeats: int = 6
    steps: int = 32
    special: float = 0.5
    settled: float = 0.02
    decay: float = 0.5

    def run(self) -> Result:
        """Both noises, three laws."""
        levels = np.linspace(0, 1, self.steps + 1)
        equals: dict[str, list[float]] = {}
        tv, kl, path, repeat = {}, {}, {}, {}
        for noise in _NOISES:
            equals[noise] = [self._equal(noise, v) for v in self.symbols]
            errors = [pair_error(equal, self.length) for equal in equals[noise]]
            tv[noise], kl[noise] = [e.tv for e in errors], [e.kl for e in errors]
            path[noise] = [self._pair_path(noise, v, levels) for v in self.symbols]
            repeat[noise] = [self._repeated_path(noise, v, levels) for v in self.symbols]
        claims = [self._closed(tv["absorbing"], levels)]
        local: dict[str, list[float]] = {}
        smooth: dict[str, list[float]] = {}
        for noise in _NOISES:
            broken = [1 - equal for equal in equals[noise]]
            local[noise] = broken
            smooth[noise] = [
                pairs_discrepancy(equal, self.length, v, self.decay)
                for equal, v in zip(equals[noise], self.symbols, strict=True)
            ]
            claims += [
                self._flat(f"{noise}, pairs: terminal TV of two tokens", broken),
                Claim(
                    f"{noise}, pairs: kernel discrepancy, V = {self.symbols[-1]} over the largest",
                    smooth[noise][-1] / max(smooth[noise]),
                    1.0,
                    0.0,
                    "paper",
                    "at most",
                    _FREE,
                ),
                self._flat(f"{noise}, pairs: terminal TV", tv[noise]),
                self._flat(f"{noise}, pairs: terminal KL", kl[noise]),
                self._grows(f"{noise}, pairs: path KL", path[noise], path["absorbing"]),
                self._grows(f"{noise}, repeated: path KL", repeat[noise], repeat["absorbing"]),
            ]
        product, more = self._products()
        panels = (
            self._panel("pairs: terminal", {"TV": tv, "KL": kl}, "total variation, or nats"),
            self._panel(
                "pairs: what fewer functions see",
                {"two tokens": local, "kernel": smooth},
                "integral probability metric",
            ),
            self._panel("path KL", {"pairs": path, "repeated": repeat}, "nats"),
            product,
        )
        return Result(panels, (*claims, *more))

    def _equal(self, noise: str, symbols: int) -> float:
        levels = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        return pair_equal(Ancestral(), process_of(noise, symbols), levels)

    def _pair_path(self, noise: str, symbols: int, levels: np.ndarray) -> float:
        if noise == "absorbing":
            return masked_pairs(levels, self.length, symbols).path_kl
        return self.length / 2 * RepeatedUniform(symbols, 2).path_kl(levels)

    def _repeated_path(self, noise: str, symbols: int, levels: np.ndarray) -> float:
        if noise == "absorbing":
            return masked_path_kl(Repeated(self.repeats, symbols).exact_curve(), levels)
        return RepeatedUniform(symbols, self.repeats).path_kl(levels)

    def _closed(self, tv: list[float], levels: np.ndarray) -> Claim:
        known = [masked_pairs(levels, self.length, v).tv for v in self.symbols]
        gap = max(abs(a - b) for a, b in zip(tv, known, strict=True))
        name = "absorbing, pairs: largest gap to the closed form in TV"
        return Claim(name, gap, 0.0, 1e-9, "derived here")

    def _flat(self, name: str, values: list[float]) -> Claim:
        text = f"{name}: V = {self.symbols[-1]} over V = {self.symbols[-2]}"
        ratio = values[-1] / values[-2]
        return Claim(text, ratio, 1.0, self.settled, "paper", reference=_FREE)

    def _grows(self, name: str, values: list[float], masked: list[float]) -> Claim:
        """Growth a unit of log V over the last two V, against that of masks.

        With masks path KL is proportional to log V. A noisy symbol that occurs once tells nothing
        about which symbol is the true one up to terms without V, so for uniform noise too only
        tokens that turn clean in the same step, before any other, cost log V each but the first.
        """
        rise = math.log(self.symbols[-1] / self.symbols[-2])
        known = masked[-1] / math.log(self.symbols[-1])
        text = f"{name}: slope in log V"
        slope = (values[-1] - values[-2]) / rise
        return Claim(text, slope, known, 0.05 * known, "derived here", reference=_PATH)

    def _products(self) -> tuple[Panel, list[Claim]]:
        """One token with a likely symbol: TV of one, so no independence hides in it."""
        kernels = (Ancestral(), Euler(), TauLeaping())
        claims, series = [], []
        for noise in _NOISES:
            for kernel in kernels:
                for steps in (1, self.steps) if isinstance(kernel, Ancestral) else (self.steps,):
                    errors = [self._token(kernel, noise, v, steps) for v in self.symbols]
                    name = f"{noise}, {type(kernel).__name__}, {steps} steps"
                    series.append(Series(name, self.symbols, errors))
                    claims += self._exact(f"product: {name}: TV", noise, kernel, errors)
        title = "independent tokens, one likely symbol"
        return Panel(title, "vocabulary", "total variation of a token", (*series,)), claims

    def _token(self, kernel: Kernel, noise: str, symbols: int, steps: int) -> float:
        levels = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        chance = token_chance(kernel, process_of(noise, symbols), levels, self.special)
        return abs(chance - self.special)

    def _exact(self, name: str, noise: str, kernel: Kernel, errors: list[float]) -> list[Claim]:
        if isinstance(kernel, Ancestral) or noise == "absorbing":
            return [Claim(f"{name}, largest", max(errors), 0.0, 1e-9, "derived here")]
        return [Claim(f"{name}, V = {self.symbols[-1]}", errors[-1], 5e-5, 0.0, "derived here",
                      "at least")]  # fmt: skip

    def _panel(self, title: str, lines: dict[str, dict[str, list[float]]], axis: str) -> Panel:
        series = [
            Series(f"{noise}: {name}", self.symbols, values)
            for name, by_noise in lines.items()
            for noise, values in by_noise.items()
        ]
        return Panel(title, "vocabulary", axis, (*series,))
