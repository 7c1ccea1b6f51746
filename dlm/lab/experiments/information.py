"""KL = O(information / steps): fixed sizes, in random order, from exact posteriors.

For sizes s_1..s_K with largest s_max, on any law,

    E KL <= (2^ceil(log2 s_max) - 1) / L * sum_i I(X_i; X_-i).

Even sizes have s_max = ceil(L / K), so the loss is of order sum_i I / K. The bound is attained: the
repeated token loses (s_1 - 1) log V, and for sizes that are powers of two that is the bound. A
random phase (`Balanced`) loses at most (1 / K) sum_i I on every law, because every increment of the
curve waits about (L / K - 1) / 2 positions. No fixed sizes do better than that order: on pairs the
curve is a straight line, even sizes are the best there are, and lose (L / K - 1) / (2 (L - 1))
times sum_i I.

Source: Li & Cai 2025, arXiv:2505.21400, theorem 1 and its corollary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from dlm.lab.experiments import curves
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series, slope_line
from dlm.lab.rates import order
from dlm.samplers import Balanced, Even, Plan
from dlm.samplers.curve import InformationCurve

_LI_CAI = "Li & Cai 2025, arXiv:2505.21400, theorem 1"

# Laws whose information is away from the ends. A checksum has all of it at the last token, and
# loses log V until that token has a step to itself: the order is that of the bound, not of a law.
_SPREAD = ("pairs", "Markov chain", "code of dimension L/4", "code of dimension 3L/4")


@final
@dataclass(frozen=True)
class Information(Experiment):
    """Loss of even and balanced sizes against the mutual information.

    Args:
        length: L.
        steps: K, divisors of L.
        symbols: V.
    """

    about: ClassVar[str] = "KL = O(information / steps): upper bound, and laws where it is attained"
    length: int = 256
    steps: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    symbols: int = 4

    def run(self) -> Result:
        """Costs of plans by the information curve."""
        laws = curves.family(self.length, self.symbols)
        panels, claims = [], []
        for plan, title in ((Even(), "even sizes"), (Balanced(), "balanced, random phase")):
            series = [
                Series(name, self.steps, [self._share(plan, law, k) for k in self.steps])
                for name, law in laws.items()
            ]
            even = isinstance(plan, Even)
            bound = [self._bound(k) if even else 1 / k for k in self.steps]
            label = "bound of Li & Cai" if even else "1 / K"
            series.append(Series(label, self.steps, bound, "predicted"))
            series.append(slope_line(self.steps, 1 / self.steps[0] / 2, -1))
            panels.append(Panel(title, "steps", "E KL / sum of I(X_i; X_-i)", (*series,)))
            claims += self._below(title, series, bound, even)
        claims += [self._attained(laws["repeated token"]), *self._pairs(laws["pairs"])]
        claims += [self._rate(name, laws[name]) for name in _SPREAD]
        return Result((*panels,), (*claims,))

    def _share(self, plan: Plan, law: InformationCurve, steps: int) -> float:
        """E KL over sum_i I(X_i; X_-i) = L Z_L."""
        waits = plan.waits(self.length, steps, self.length)
        return law.cost(waits) / (self.length * law.values[-1])

    def _bound(self, steps: int) -> float:
        largest = -(-self.length // steps)
        return (2 ** math.ceil(math.log2(largest)) - 1) / self.length

    def _below(
        self, title: str, series: list[Series], bound: list[float], even: bool
    ) -> list[Claim]:
        claims = []
        for line in series:
            if line.role != "measured":
                continue
            worst = max(y / b for y, b in zip(line.y, bound, strict=True))
            name = f"{title}, {line.label}: largest share of the bound"
            claims.append(
                Claim(
                    name, worst, 1.0, 1e-12, "paper" if even else "derived here", "at most",
                    _LI_CAI if even else "random phase of the corollary of Li & Cai",
                )
            )  # fmt: skip
        return claims

    def _attained(self, law: InformationCurve) -> Claim:
        """Sizes that are powers of two."""
        powers = [k for k in self.steps if (self.length // k).bit_count() == 1]
        least = min(self._share(Even(), law, k) / self._bound(k) for k in powers)
        name = "even sizes of a power of two, repeated token: share of the bound"
        return Claim(name, least, 1.0, 1e-12, "derived here", reference="tightness of theorem 1")

    def _pairs(self, law: InformationCurve) -> list[Claim]:
        """Even sizes are the best, and lose what the straight line says."""
        gap, off = 0.0, 0.0
        for k in self.steps:
            even = self._share(Even(), law, k)
            best = law.expected_kl(law.optimal_sizes(k)) / (self.length * law.values[-1])
            known = (self.length / k - 1) / (2 * (self.length - 1))
            gap, off = max(gap, abs(even / best - 1)), max(off, abs(even / known - 1))
        lower = "matching lower bound"
        return [
            Claim("pairs: even sizes against the best sizes", gap, 0.0, 1e-9, "derived here",
                  reference=lower),
            Claim("pairs: even sizes against (L/K - 1) / (2 (L - 1))", off, 0.0, 1e-9,
                  "derived here", reference=lower),
        ]  # fmt: skip

    def _rate(self, name: str, law: InformationCurve) -> Claim:
        """Order of the balanced loss in K, at the small K where steps are long.

        L / K - 1 falls a little faster than 1 / K.
        """
        few = self.steps[: max(2, len(self.steps) // 2)]
        rate = order(few, [self._share(Balanced(), law, k) for k in few])
        title = f"balanced, {name}: order in steps"
        return Claim(title, rate, 1.0, 0.25, "paper", reference=_LI_CAI)
