"""Long correlated sequences: the path KL of chains grows with L and falls like 1 / K.

For a Markov chain and a hidden one everything that depends on both noises is estimated by draws
with exact posteriors (`dlm.lab.drawn`), unbiased, with standard errors. Two checks come first: for
masks the information curve of the chain gives the same number without drawing, and for three tokens
enumeration does. Then, per token, the path KL stays the same as L grows (the dual total correlation
of a chain grows like L), and its order in K is 1.

Intervals are 4 standard errors wide on each side: a right estimate fails once in 16,000.

Sources: Dmitriev, Huang & Wei 2026, theorem 2 (step costs); the hidden chain under masks is an
oracle in Tang et al. 2026, arXiv:2602.19619. The estimate is derived here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from dlm.lab.drawn import drawn_path_kl
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series, slope_line
from dlm.lab.experiments.tables import path_kl, process_of
from dlm.lab.laws import Estimate, HiddenMarkov, Law, Lazy, MarkovChain
from dlm.lab.rates import masked_path_kl
from dlm.samplers import Ancestral

_NOISES = ("absorbing", "uniform")
_WIDE = 4.0
_STEP_COST = "Dmitriev, Huang & Wei 2026, theorem 2"


@final
@dataclass(frozen=True)
class Chains(Experiment):
    """Path KL of ancestral samplers on chains, by draws.

    Args:
        lengths: L, rising.
        steps: K at the second length.
        symbols, stay: of the chain.
        emission: chance that a hidden state shows its own symbol.
        samples: sequences of each estimate.
        seed: of the draws.
    """

    about: ClassVar[str] = "Markov and hidden chains by draws: path KL per token, intervals"
    lengths: tuple[int, ...] = (16, 32, 64)
    steps: tuple[int, ...] = (8, 16, 32)
    symbols: int = 4
    stay: float = 0.95
    emission: float = 0.9
    samples: int = 768
    seed: int = 0

    def run(self) -> Result:
        """Checks, then lengths, then steps."""
        claims = self._checks()
        by_length: list[Series] = []
        by_steps: list[Series] = []
        for name in ("chain", "hidden chain"):
            for noise in _NOISES:
                label = f"{name}, {noise}"
                lengths = [self._drawn(name, noise, n, self.steps[0]) for n in self.lengths]
                per_token = [e.value / n for e, n in zip(lengths, self.lengths, strict=True)]
                by_length.append(Series(label, self.lengths, per_token))
                steps = [self._drawn(name, noise, self.lengths[1], k) for k in self.steps]
                by_steps.append(Series(label, self.steps, [e.value for e in steps]))
                claims += [self._flat(label, lengths), self._order(label, steps)]
        by_steps.append(slope_line(self.steps, by_steps[0].y[0], -1))
        panels = (
            Panel(f"K = {self.steps[0]}", "length", "path KL per token, nats", (*by_length,)),
            Panel(f"L = {self.lengths[1]}", "steps", "path KL, nats", (*by_steps,)),
        )
        return Result(panels, (*claims,))

    def _law(self, name: str, length: int) -> Law:
        if name == "chain":
            return MarkovChain(length, self.symbols, Lazy(self.stay))
        return HiddenMarkov(
            length, self.symbols, self.symbols, Lazy(self.stay), Lazy(self.emission)
        )

    def _drawn(self, name: str, noise: str, length: int, steps: int, times: int = 1) -> Estimate:
        levels = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        process = process_of(noise, self.symbols)
        law, samples = self._law(name, length), times * self.samples
        return drawn_path_kl(law, process, Ancestral(), levels, samples, self.seed)

    def _checks(self) -> list[Claim]:
        length, steps = self.lengths[1], self.steps[0]
        levels = torch.linspace(0, 1, steps + 1, dtype=torch.float64).numpy()
        curve = MarkovChain(length, self.symbols, Lazy(self.stay)).exact_curve()
        found = self._drawn("chain", "absorbing", length, steps)
        text = f"chain, masks, L = {length}: draws against the information curve"
        known = masked_path_kl(curve, levels)
        claims = [
            Claim(text, found.value, known, _WIDE * found.stderr, "derived here",
                  reference=_STEP_COST)
        ]  # fmt: skip
        for noise in _NOISES:
            found = self._drawn("hidden chain", noise, 3, steps, 16)
            table = self._law("hidden chain", 3).table()
            known = path_kl(table, process_of(noise, self.symbols), Ancestral(), steps)
            text = f"hidden chain, {noise}, L = 3: draws against enumeration"
            claims.append(Claim(text, found.value, known, _WIDE * found.stderr, "derived here"))
        return claims

    def _flat(self, label: str, found: list[Estimate]) -> Claim:
        """The ratio of the last two lengths to the ratio of their path KL."""
        ratio = found[-1].value / found[-2].value * self.lengths[-2] / self.lengths[-1]
        spread = ratio * math.hypot(*(e.stderr / e.value for e in found[-2:]))
        text = f"{label}: path KL per token, L = {self.lengths[-1]} over {self.lengths[-2]}"
        return Claim(text, ratio, 1.0, 0.1 + _WIDE * spread, "derived here")

    def _order(self, label: str, found: list[Estimate]) -> Claim:
        first, last = found[0], found[-1]
        ratio = math.log(self.steps[-1] / self.steps[0])
        rate = math.log(first.value / last.value) / ratio
        spread = math.hypot(first.stderr / first.value, last.stderr / last.value) / ratio
        text = f"{label}: order of path KL in steps"
        slack = 0.15 + _WIDE * spread
        return Claim(text, rate, 1.0, slack, "paper", reference=_STEP_COST)
