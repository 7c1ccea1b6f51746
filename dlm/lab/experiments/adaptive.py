"""Fewer steps than tokens, and a loss that adapts to the law without knowing it.

Fixed sizes cannot: the checksum has total correlation log V for every L, and loses all of it to any
fixed sizes whose last step opens two positions or more, at every K < L. Random sizes can. Against
total correlation TC, or its dual DTC, or both, the minimax plan loses

    E KL <= c TC,    E KL <= c DTC,    E KL <= c min(TC, DTC)

for every law, with 2 c K ~ log(1 + 2 c L) for the first two and c K ~ log(1 + c L) for the last:
of order log(L / K) / K. The checksum loses exactly c log V to the first, the repeated token
exactly c log V to the second. The equaliser loses the same share of TC on every law.

Sources: Zhao & Cai 2026, arXiv:2602.20126 (loss of order TC / K and DTC / K up to logarithms,
K < L); Chen, Cong & Li 2026 (decreasing and increasing sizes). The plans and their constants are
ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, final

import numpy as np

from dlm.errors import UserError
from dlm.lab.experiments import curves
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series
from dlm.samplers import (
    Balanced,
    Cosine,
    Decreasing,
    Equaliser,
    Even,
    Increasing,
    Minimax,
    Plan,
)
from dlm.samplers.curve import InformationCurve
from dlm.samplers.minimax import Against, weights

_RANDOM = "Zhao & Cai 2026, arXiv:2602.20126 (rate); constants ours"
_MOST_FOR_EQUALISER = 256  # it tabulates steps * L * L numbers
_AGAINST: tuple[Against, ...] = ("tc", "dtc", "both")


@final
@dataclass(frozen=True)
class Adaptive(Experiment):
    """Plans against laws, by the information curve.

    Args:
        lengths, steps: L and K of each case; K divides L and K < L.
        symbols: V.

    Raises:
        UserError: for steps that do not divide the length or are not fewer.
    """

    about: ClassVar[str] = "fewer steps than tokens: loss c TC, c DTC without knowing the law"
    lengths: tuple[int, ...] = (64, 256, 1024, 1024)
    steps: tuple[int, ...] = (8, 32, 32, 128)
    symbols: int = 4

    def __post_init__(self) -> None:
        for length, steps in zip(self.lengths, self.steps, strict=True):
            if not 2 <= steps < length or length % steps:
                raise UserError(
                    "adaptive needs steps from 2 on that divide the length and are fewer, got "
                    f"length {length} and {steps} steps"
                )

    def run(self) -> Result:
        """All cases; the figure shows one."""
        claims = []
        for length, steps in zip(self.lengths, self.steps, strict=True):
            claims += self._case(length, steps)
        at = min(1, len(self.lengths) - 1)
        shown = (self.lengths[at], self.steps[at])
        return Result((self._plans_panel(*shown), self._constants(shown[0])), (*claims,))

    def _case(self, length: int, steps: int) -> list[Claim]:
        laws, log_v = curves.family(length, self.symbols), math.log(self.symbols)
        title = f"L = {length}, K = {steps}"
        claims = [
            Claim(
                f"{title}: {name} sizes lose all of the checksum, over log V",
                _loss(plan, laws["checksum"], steps) / log_v, 1.0, 1e-12, "paper",
                reference="Chen, Cong & Li 2026 (no fixed sizes adapt)",
            )
            for name, plan in (("even", Even()), ("cosine", Cosine()))
        ]  # fmt: skip
        for against in _AGAINST:
            claims += self._guarantee(title, against, laws, steps)
        if length <= _MOST_FOR_EQUALISER:
            claims.append(_equal_share(title, laws, steps))
        return claims

    def _guarantee(
        self, title: str, against: Against, laws: dict[str, InformationCurve], steps: int
    ) -> list[Claim]:
        plan = Minimax(against)
        length = laws["checksum"].length
        c = plan.constant(length, steps)
        worst = max(_loss(plan, law, steps) / _measure(law, against) for law in laws.values())
        everywhere = float((_waits(plan, length, steps)[1:] / weights(length, against)).max())
        name = f"{title}, minimax against {against}"
        claims = [
            Claim(f"{name}: worst share lost among the laws", worst, c, 1e-9, "ours", "at most"),
            Claim(f"{name}: worst share of any law, E R_l / w_l", everywhere, c, 1e-9, "ours",
                  "at most"),
        ]  # fmt: skip
        # A weight min(l - 1, L - l + 1) sums to half of each: its constant is twice theirs.
        halves = 1.0 if against == "both" else 2.0
        claims.append(
            Claim(
                f"{name}: {halves:g} c K over log(1 + {halves:g} c L)",
                halves * c * steps / math.log1p(halves * c * length), 1.0,
                0.15, "derived here", reference=_RANDOM,
            )
        )  # fmt: skip
        hard = {"tc": "checksum", "dtc": "repeated token"}.get(against)
        if hard is not None:
            lost = _loss(plan, laws[hard], steps) / math.log(self.symbols)
            text = f"{name}: lost on the {hard}, over log V"
            claims.append(Claim(text, lost, c, 1e-9, "derived here"))
        return claims

    def _plans_panel(self, length: int, steps: int) -> Panel:
        """Loss over sum dZ min(l - 1, L - l + 1), at most TC and DTC, for each law and plan."""
        laws = curves.family(length, self.symbols)
        plans: dict[str, Plan] = {
            "even": Even(), "cosine": Cosine(), "balanced": Balanced(),
            "decreasing": Decreasing(), "increasing": Increasing(),
            "minimax tc": Minimax("tc"), "minimax dtc": Minimax("dtc"),
            "minimax both": Minimax("both"),
        }  # fmt: skip
        if length <= _MOST_FOR_EQUALISER:
            plans["equaliser"] = Equaliser()
        places = list(range(1, len(plans) + 1))
        series = [
            Series(
                name,
                places,
                [_loss(plan, law, steps) / _measure(law, "both") for plan in plans.values()],
            )
            for name, law in laws.items()
        ]
        c = Minimax("both").constant(length, steps)
        series.append(Series("c of minimax both", places, [c] * len(places), "predicted"))
        title, axis = (
            f"L = {length}, K = {steps}; losses of 0 not shown",
            "E KL / sum dZ min(l - 1, L - l + 1)",
        )
        return Panel(title, "plan", axis, (*series,), log_x=False, ticks=tuple(plans))

    def _constants(self, length: int) -> Panel:
        """c against K."""
        steps = [k for k in (2, 4, 8, 16, 32, 64, 128) if k < length]
        series = []
        for against in _AGAINST:
            plan = Minimax(against)
            c = [plan.constant(length, k) for k in steps]
            series.append(Series(f"minimax {against}", steps, c))
        known = [_asymptotic(length, k) for k in steps]
        series.append(Series("2 c K = log(1 + 2 c L)", steps, known, "predicted"))
        return Panel(f"worst share lost, L = {length}", "steps", "c", (*series,))


@lru_cache(maxsize=64)
def _waits(plan: Plan, length: int, steps: int) -> np.ndarray:
    return plan.waits(length, steps, length)


def _loss(plan: Plan, law: InformationCurve, steps: int) -> float:
    return law.cost(_waits(plan, law.length, steps))


def _measure(law: InformationCurve, against: Against) -> float:
    """What the weights sum to: TC, DTC, or sum dZ min(...), which is at most either."""
    return float(np.diff(law.values) @ weights(law.length, against))


def _equal_share(title: str, laws: dict[str, InformationCurve], steps: int) -> Claim:
    plan = Equaliser()
    length = laws["checksum"].length
    v = plan.share(length, steps)
    gaps = [abs(_loss(plan, law, steps) / law.total_correlation - v) for law in laws.values()]
    return Claim(f"{title}, equaliser: spread of the share of TC", max(gaps), 0.0, 1e-9, "ours")


def _asymptotic(length: int, steps: int) -> float:
    """The positive solution of 2 c K = log(1 + 2 c L), by halving."""
    low, high = 1e-12, 1.0
    for _ in range(100):
        c = math.sqrt(low * high)
        low, high = (c, high) if 2 * c * steps < math.log1p(2 * c * length) else (low, c)
    return high
