"""Plugging the denoiser into the reverse step is biased for uniform noise, at any number of steps.

The reverse step is exact per token with the leave-one-out posterior p(x0_i | x_t without i) in the
place of x0. The ordinary denoiser p(x0_i | x_t) has seen the token it is about to replace; with it
in that place the token counts twice, and the error does not fall with the steps, not even for
independent tokens. Under masks the two posteriors agree where anything moves, and there is no bias.

Source: Gourevitch et al. 2026, arXiv:2605.22765; Dmitriev, Huang & Wei 2026 (leave-one-out
sampler).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from dlm.denoiser import Predictor
from dlm.lab import exact
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series, slope_line
from dlm.lab.experiments.tables import (
    DenoiserPluggedIn,
    correlated_table,
    even_times,
    process_of,
    product_table,
)
from dlm.lab.oracle import Oracle
from dlm.lab.rates import order
from dlm.processes import Process
from dlm.samplers import Ancestral

_BIAS = "Gourevitch et al. 2026, arXiv:2605.22765"


@final
@dataclass(frozen=True)
class PlugIn(Experiment):
    """Total variation against steps, with either posterior plugged in.

    Args:
        steps: K.
        symbols, length, seed: of the laws.
    """

    about: ClassVar[str] = "uniform noise: the denoiser plugged in is biased at any number of steps"
    steps: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    symbols: int = 3
    length: int = 2
    seed: int = 0

    def run(self) -> Result:
        """Push both through, on a product and on a correlated law."""
        laws = {
            "product": product_table(self.symbols, self.length, self.seed),
            "correlated": correlated_table(self.symbols, self.length, self.seed),
        }
        panels, claims = [], []
        for name, table in laws.items():
            process = process_of("uniform", self.symbols)
            right = self._errors(table, process, Oracle(table, process))
            wrong = self._errors(table, process, DenoiserPluggedIn(Oracle(table, process)))
            lines = (
                Series("leave-one-out posterior", self.steps, [max(e, 1e-17) for e in right]),
                Series("denoiser", self.steps, wrong),
                slope_line(self.steps, wrong[0], -1),
            )
            panels.append(Panel(f"{name} law, uniform noise", "steps", "total variation", lines))
            claims += self._claims(name, right, wrong)
        claims.append(self._masked(laws["correlated"]))
        return Result((*panels,), (*claims,))

    def _errors(self, table: Tensor, process: Process, predictor: Predictor) -> list[float]:
        target = exact.embed(table, process)
        return [
            exact.total_variation(
                target,
                exact.output_law(predictor, Ancestral(), even_times(process, k), table.ndim),
            ).item()
            for k in self.steps
        ]

    def _claims(self, name: str, right: list[float], wrong: list[float]) -> list[Claim]:
        most = self.steps[-1]
        claims = [
            Claim(f"{name}, denoiser: TV at {most} steps", wrong[-1], 0.02, 0.0, "paper",
                  "at least", _BIAS),
            Claim(f"{name}, denoiser: order in steps", order(self.steps, wrong), 0.0, 0.1,
                  "paper", reference=_BIAS),
        ]  # fmt: skip
        if name == "product":
            text = f"{name}, leave-one-out: largest TV, from {self.steps[0]} steps on"
            claims.append(Claim(text, max(right), 0.0, 1e-12, "derived here"))
        else:
            text = f"{name}, leave-one-out: order in steps"
            rate = order(self.steps, right)
            claims.append(Claim(text, rate, 1.0, 0.1, "paper", reference=_BIAS))
        return claims

    def _masked(self, table: Tensor) -> Claim:
        process = process_of("absorbing", self.symbols)
        oracle = Oracle(table, process)
        laws = [
            exact.output_law(p, Ancestral(), even_times(process, self.steps[0]), table.ndim)
            for p in (oracle, DenoiserPluggedIn(oracle))
        ]
        name = "masks: TV between the two"
        return Claim(name, exact.total_variation(*laws).item(), 0.0, 1e-12, "derived here")
