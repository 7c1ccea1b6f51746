"""What every plan is predicted to lose on a measured dependence curve, with intervals.

A plan's loss is linear in the curve, sum_l (Z_l - Z_{l-1}) E R_l, so one set of resampled curves
gives the intervals of all plans and budgets. "profile" is the plan of least loss on the measured
curve itself; its sizes stay fixed while the curve is resampled. It is fitted to the noise of the
curve too, so its own value is a little too good: `crossed` is what the plan of one half of the
sequences loses on the other. Everything is in nats per sequence, relative to one position at a
time, which loses nothing.

An interval is the central 95 % of the resampled values: the error of a finite number of sequences.
That of the network is not in it.

The ancestral sampler on a grid opens each hidden position on its own. Its loss is linear in the
curve too: TC - L sum_k (a_{k+1} - a_k) E Z_{n+1}, n ~ Binomial(L - 1, a_k).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, final

import numpy as np
from torch import Tensor

from dlm.evaluation.dependence import Dependence, binomial
from dlm.samplers.curve import InformationCurve, waits_of
from dlm.samplers.plans import (
    Balanced,
    Cosine,
    Decreasing,
    Equaliser,
    Even,
    Increasing,
    Minimax,
    Plan,
)

MEASURED = "profile"
PLANS: dict[str, Plan] = {  # as they are called on the command line
    "plan=even": Even(),
    "plan=cosine": Cosine(),
    "plan=balanced": Balanced(),
    "plan=minimax plan.against=tc": Minimax("tc"),
    "plan=minimax plan.against=dtc": Minimax("dtc"),
    "plan=minimax plan.against=both": Minimax("both"),
    "plan=equaliser": Equaliser(),
    "plan=decreasing": Decreasing(),
    "plan=increasing": Increasing(),
}
NAMES = {name: name.replace("plan=", "").replace("plan.against=", "") for name in PLANS}


class Interval(NamedTuple):
    """A value and its central 95 %."""

    value: float
    low: float
    high: float


class Calls(NamedTuple):
    """Network calls that a target takes, and those of either end of its interval."""

    value: int
    low: int
    high: int


@final
@dataclass(frozen=True, eq=False)
class PlanCosts:
    """Predicted losses of plans.

    Args:
        curve: as measured.
        resampled: curves of resampled sequences, float64 (R, L).
        halves: the curves of two halves of the sequences.
    """

    curve: InformationCurve
    resampled: np.ndarray
    halves: tuple[InformationCurve, InformationCurve]
    _known: dict[tuple[str, int], Interval] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, dependence: Dependence, times: int, seed: int) -> PlanCosts:
        """Of a measurement, with so many resampled curves."""
        one, two = dependence.halves()
        return cls(dependence.curve, dependence.resampled(times, seed), (one.curve, two.curve))

    @property
    def names(self) -> tuple[str, ...]:
        """The plans, "profile" last."""
        return (*NAMES.values(), MEASURED)

    def cost(self, name: str, steps: int) -> Interval:
        """Nats per sequence that a plan loses with so many steps."""
        if (name, steps) not in self._known:
            waits = self._waits(name, steps)
            self._known[name, steps] = self._interval(lambda z: np.diff(z) @ waits[1:])
        return self._known[name, steps]

    def crossed(self, steps: int) -> float:
        """Nats that the plan of one half loses on the curve of the other, mean of both ways."""
        one, two = self.halves
        there, back = one.optimal_sizes(steps), two.optimal_sizes(steps)
        return (two.expected_kl(there) + one.expected_kl(back)) / 2

    def grid_cost(self, grid: Tensor) -> Interval:
        """Nats per sequence that the ancestral sampler loses on levels (K + 1,), for masks."""
        length = self.curve.length
        mixture = grid.diff() @ binomial(length - 1, grid[:-1])
        weight = 1 - length * mixture.numpy()
        return self._interval(lambda z: z @ weight)

    def best(self, steps: int) -> str:
        """The plan of least loss among those that need no profile."""
        return min(NAMES.values(), key=lambda name: self.cost(name, steps).value)

    def calls(self, name: str, target: float) -> Calls:
        """Steps that bring a plan to the target, one fewer being too few."""
        found = [self._smallest(name, target, end) for end in range(3)]
        return Calls(found[0], min(found), max(found))

    def total_correlation(self) -> Interval:
        """sum_j Z_j, nats."""
        return self._interval(lambda z: z.sum(-1))

    def dual_total_correlation(self) -> Interval:
        """L Z_L - sum_j Z_j, nats."""
        return self._interval(lambda z: z.shape[-1] * z[..., -1] - z.sum(-1))

    def budgets(self) -> tuple[int, ...]:
        """1, 2, 4, ... and L."""
        length = self.curve.length
        return (*(2**k for k in range((length - 1).bit_length())), length)

    def _waits(self, name: str, steps: int) -> np.ndarray:
        length = self.curve.length
        if name == MEASURED:
            return waits_of(np.asarray(self.curve.optimal_sizes(steps)), length)
        (plan,) = (PLANS[key] for key, short in NAMES.items() if short == name)
        return plan.waits(length, steps, length)

    def _interval(self, measure: Callable[[np.ndarray], np.ndarray]) -> Interval:
        low, high = np.quantile(measure(self.resampled), (0.025, 0.975))
        return Interval(float(measure(np.asarray(self.curve.values))), float(low), float(high))

    def _smallest(self, name: str, target: float, end: int) -> int:
        low, high = 0, self.curve.length  # too few; enough
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.cost(name, middle)[end] <= target
            low, high = (low, middle) if enough else (middle, high)
        return high
