"""What a corrector leaves alone, what it mends, and at what price.

Redrawing one random position from its law given all the others leaves p_t as it is, exactly. So
many sweeps at every stop forget the steps before: what remains is the error of the last step alone,
started from the exact p_s. Choosing the position by looking at the values, or moving several at
once from stale conditionals, moves p_t itself.

A sweep here is as many single-site calls as the settings say, each a network call. At equal calls
the question is whether c sweeps at every stop beat as many more steps; theory does not say, so both
are measured and shown, and no claim rests on it.

Source: Gourevitch et al. 2026, arXiv:2605.22765 (leave-one-out Gibbs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dlm.lab import exact, pushed
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series
from dlm.lab.experiments.tables import correlated_table, process_of
from dlm.lab.oracle import Oracle
from dlm.processes import Process
from dlm.samplers import Ancestral, DenoiseRenoise, EvenGrid, Gibbs, GridSampler

_GIBBS = "Gourevitch et al. 2026, arXiv:2605.22765"
_NOISES = ("absorbing", "uniform")


@final
@dataclass(frozen=True)
class Corrector(Experiment):
    """Correctors on a small correlated law.

    Args:
        steps: predictor steps K.
        sweeps: Gibbs calls at each stop, 0 among them.
        many: of them, for the limit.
        symbols, length, seed: of the law. With two tokens one call already mends everything that
            can be: their marginals are right, only what they share is wrong.
        level: alpha at which invariance is checked.
    """

    about: ClassVar[str] = "correctors: what leaves the law invariant, what mends, equal calls"
    steps: int = 4
    sweeps: tuple[int, ...] = (0, 1, 2, 4, 8)
    many: int = 60
    symbols: int = 3
    length: int = 3
    seed: int = 0
    level: float = 0.6

    def run(self) -> Result:
        """Invariance, the limit, equal calls."""
        table = correlated_table(self.symbols, self.length, self.seed)
        panels, claims = [], []
        for noise in _NOISES:
            process = process_of(noise, self.symbols)
            claims += self._invariance(noise, table, process)
            panels.append(self._equal_calls(noise, table, process))
            claims.append(self._limit(noise, table, process))
            lines = panels[-1].series
            claims.append(
                Claim(
                    f"{noise}: TV with {self.sweeps[-1]} sweeps at each stop over TV without",
                    lines[0].y[-1] / lines[0].y[0], 1.0, 0.0, "ours", "at most",
                )
            )  # fmt: skip
        return Result((*panels,), (*claims,))

    def _invariance(self, noise: str, table: Tensor, process: Process) -> list[Claim]:
        t = process.schedule.inverse(torch.tensor(self.level, dtype=torch.float64))
        oracle, law = Oracle(table, process), exact.noised_law(table, process, t)

        def drift(corrector: Gibbs | DenoiseRenoise) -> float:
            after = pushed.corrected_law(oracle, corrector, law, t)
            return exact.total_variation(law, after).item()

        claims = [
            Claim(
                f"{noise}: drift of one random site, {name}", drift(corrector), 0.0, 1e-12, "paper",
                reference=_GIBBS,
            )
            for name, corrector in (("Gibbs", Gibbs()), ("denoise-renoise", DenoiseRenoise()))
        ]  # fmt: skip
        stale = drift(Gibbs(positions=2))
        text = f"{noise}: drift of two sites at once"
        claims.append(Claim(text, stale, 1e-3, 0.0, "derived here", "at least"))
        informed = Gibbs(selection="lowest_margin")
        if informed.refusal(process) is None:
            text = f"{noise}: drift of the site of lowest margin"
            claims.append(Claim(text, drift(informed), 1e-3, 0.0, "derived here", "at least"))
        return claims

    def _error(self, table: Tensor, process: Process, steps: int, sweeps: int) -> float:
        """TV of `steps` predictor steps with so many Gibbs calls at each of the steps - 1 stops."""
        calls = steps + sweeps * (steps - 1)
        corrector = Gibbs() if sweeps else None
        made = GridSampler(Ancestral(), EvenGrid(), calls, corrector, max(1, sweeps))
        law = pushed.grid_law(made, Oracle(table, process), table.ndim)
        return exact.total_variation(exact.embed(table, process), law).item()

    def _equal_calls(self, noise: str, table: Tensor, process: Process) -> Panel:
        calls = [self.steps + c * (self.steps - 1) for c in self.sweeps]
        corrected = [self._error(table, process, self.steps, c) for c in self.sweeps]
        plain = [self._error(table, process, n, 0) for n in calls]
        lines = (
            Series(f"{self.steps} steps, Gibbs calls at each stop", calls, corrected),
            Series("steps alone", calls, plain),
        )
        return Panel(f"{noise} noise, equal calls", "network calls", "total variation", lines)

    def _limit(self, noise: str, table: Tensor, process: Process) -> Claim:
        """Many sweeps against the last step from the exact law."""
        levels = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        t, s = process.schedule.inverse(levels[-2:])
        oracle = Oracle(table, process)
        step = exact.step_law(oracle, Ancestral(), t, s, table.ndim)
        law = exact.noised_law(table, process, t) @ step
        known = exact.total_variation(exact.embed(table, process), law).item()
        found = self._error(table, process, self.steps, self.many)
        text = f"{noise}: TV with {self.many} sweeps against the last step from the exact law"
        return Claim(text, found, known, 1e-6, "derived here")
