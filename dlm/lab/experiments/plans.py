"""What every plan loses on a law of your choice: its information curve against its own draws.

The curve (a formula of the law, or an estimate) predicts for every plan and number of calls

    E KL = sum_l (Z_l - Z_{l-1}) E R_l.

Measured, without the curve: draw a sequence x and a random order, let the plan draw its sizes, ask
the exact posterior at every step, and take -log q(x | order, sizes) + log p(x). Its mean is E KL,
with a standard error, for laws of any size. So law, posterior, curve and plan are held against each
other; entropy, total correlation (the loss of one call) and its dual are drawn beside them.

Sources: Chen, Cong & Li 2026, theorem 4 (the curve); the plans are those of `dlm.samplers.plans`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series
from dlm.lab.experiments.tables import process_of
from dlm.lab.laws import Estimate, Law
from dlm.lab.laws.base import point_evidence
from dlm.lab.laws.logs import batches
from dlm.lab.oracle import Oracle
from dlm.random import Key
from dlm.samplers import Balanced, Cosine, Equaliser, Even, Minimax, Plan
from dlm.samplers.curve import InformationCurve
from dlm.samplers.forced import plan_nats
from dlm.samplers.minimax import Outcomes
from dlm.samplers.plans import TabledPlan

_WIDE = 5.0  # standard errors on either side; there are some twenty claims
_ROUNDING = 1e-9  # nats a token, of sums of logs
_CURVE = "Chen, Cong & Li 2026, theorem 4"
_SAMPLES = 256  # of an estimated curve
_GAIN = 1e-9


class _Lost(NamedTuple):
    """A loss as the curve has it, and as drawn."""

    predicted: Estimate
    drawn: Estimate


@final
@dataclass(frozen=True)
class Plans(Experiment):
    """Losses of plans on a law.

    Args:
        law: any.
        steps: calls K; as many as there are tokens lose nothing.
        samples: sequences that are drawn.
        seed: of the draws.

    Raises:
        UserError: for no steps, steps below 1, or samples below 2.
    """

    about: ClassVar[str] = "a law of your choice: what every plan loses, curve against draws"
    law: Law
    steps: tuple[int, ...] = (1, 2, 4, 8)
    samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise UserError(f"plans needs steps from 1 on, got {list(self.steps)}")
        if self.samples < 2:
            raise UserError(f"samples must be at least 2, got {self.samples}")

    def run(self) -> Result:
        """Draw once, ask for every plan."""
        key = Key(self.seed, torch.arange(self.samples))
        tokens = self.law.sample(self.samples, key=key)
        oracle = Oracle(self.law, process_of("absorbing", self.law.symbols))
        curve = self.law.curve(_SAMPLES, self.seed)
        plans = _plans(curve)
        lost = {
            name: {k: self._lost(plan, k, curve, oracle, tokens, key) for k in self.steps}
            for name, plan in plans.items()
        }
        claims = [*self._law_itself(tokens, lost["even"].get(1)), *self._agreement(lost)]
        return Result((_curve_panel(curve), self._panel(lost)), (*claims, *self._best(lost)))

    def _lost(
        self,
        plan: Plan,
        steps: int,
        curve: InformationCurve,
        oracle: Oracle,
        tokens: Tensor,
        key: Key,
    ) -> _Lost:
        rows = batches(len(tokens), self.law.length * self.law.symbols)
        nats = torch.cat(
            [plan_nats(oracle, tokens[at], plan, steps, key=key.fold("plans")[at]) for at in rows]
        )
        drawn = _mean(nats + self.law.log_prob(tokens))
        waits = plan.waits(curve.length, steps, curve.length)
        return _Lost(_predicted(curve, waits), drawn)

    def _law_itself(self, tokens: Tensor, one_call: _Lost | None) -> list[Claim]:
        """Entropy and dual total correlation, and the total one if one call was asked for."""
        entropy, dual = self.law.entropy(), self.law.dual_total_correlation()
        log_p = self.law.log_prob(tokens)
        alone = torch.cat(
            [_given_all_others(self.law, tokens[at]) for at in batches(len(tokens), self._numbers)]
        )
        claims = [
            self._equal("entropy, nats", _mean(-log_p), entropy),
            self._equal("dual total correlation, nats", _mean(alone - log_p), dual),
        ]
        if one_call is not None:
            total = self.law.total_correlation()
            claims.append(self._equal("total correlation, nats", one_call.drawn, total))
        return claims

    def _agreement(self, lost: dict[str, dict[int, _Lost]]) -> list[Claim]:
        return [
            self._equal(f"{name}, {k} calls: nats lost", found.drawn, found.predicted)
            for name, by_steps in lost.items()
            for k, found in by_steps.items()
        ]

    def _best(self, lost: dict[str, dict[int, _Lost]]) -> list[Claim]:
        """On its own curve no plan of fixed sizes is better than the best one."""
        best, fixed = lost["best"], (lost["even"], lost["cosine"])
        return [
            Claim(
                f"best sizes, {k} calls: nats lost against even and cosine",
                best[k].predicted.value, min(plan[k].predicted.value for plan in fixed),
                _GAIN * self.law.length, "paper", "at most", _CURVE,
            )
            for k in self.steps
        ]  # fmt: skip

    def _equal(self, name: str, measured: Estimate, predicted: Estimate) -> Claim:
        spread = math.hypot(measured.stderr, predicted.stderr)
        slack = _WIDE * spread + _ROUNDING * self.law.length
        return Claim(name, measured.value, predicted.value, slack, "paper", reference=_CURVE)

    @property
    def _numbers(self) -> int:
        return self.law.length * self.law.symbols

    def _panel(self, lost: dict[str, dict[int, _Lost]]) -> Panel:
        series = []
        for name, by_steps in lost.items():
            known = [by_steps[k].predicted.value for k in self.steps]
            drawn = [by_steps[k].drawn.value for k in self.steps]
            series.append(Series(f"{name}, drawn", self.steps, drawn))
            series.append(Series(f"{name}, curve", self.steps, known, "predicted"))
        title = f"{type(self.law).__name__}, L = {self.law.length}, V = {self.law.symbols}"
        return Panel(title, "calls", "nats lost", (*series,), log_y=False)


@final
@dataclass(frozen=True)
class Best(TabledPlan):
    """The fixed sizes of least loss on a curve, for sequences of its length.

    Args:
        curve: of the law.
    """

    curve: InformationCurve

    def outcomes(self, hidden: int, steps: int, total: int) -> Outcomes:
        """One."""
        return Outcomes(np.ones(1), np.asarray([self.curve.optimal_sizes(steps)]))


def _plans(curve: InformationCurve) -> dict[str, Plan]:
    return {
        "even": Even(), "cosine": Cosine(), "balanced": Balanced(),
        "minimax tc": Minimax("tc"), "minimax dtc": Minimax("dtc"),
        "equaliser": Equaliser(), "best": Best(curve),
    }  # fmt: skip


def _predicted(curve: InformationCurve, waits: np.ndarray) -> Estimate:
    """sum_l (Z_l - Z_{l-1}) w_l, and the error of it if those of all Z_l conspire."""
    weights = waits - np.append(waits[1:], 0.0)  # of Z_l itself
    stderr = 0.0 if curve.stderr is None else float(np.abs(weights[1:]) @ curve.stderr[1:])
    return Estimate(curve.cost(waits), stderr)


def _given_all_others(law: Law, tokens: Tensor) -> Tensor:
    """sum_i log p(x_i | all others), float64 (N,)."""
    log_p = law.log_posterior(point_evidence(tokens, law.symbols))
    return log_p.gather(-1, tokens[..., None]).sum((-2, -1))


def _mean(nats: Tensor) -> Estimate:
    return Estimate(nats.mean().item(), (nats.std() / len(nats) ** 0.5).item())


def _curve_panel(curve: InformationCurve) -> Panel:
    places = list(range(1, curve.length + 1))
    line = Series("Z", places, curve.values)
    return Panel("information curve", "position", "nats", (line,), log_x=False, log_y=False)
