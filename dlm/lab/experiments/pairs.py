"""Masked steps on duplicated pairs: the dependence on dimension is real, and exactly known.

L / 2 pairs X_{2i-1} = X_{2i} ~ Uniform(V). A pair breaks when both of its tokens open in one step
and then differ, so with c = sum_k (a_{k+1} - a_k)^2 >= 1 / K

    TV = 1 - (1 - c (1 - 1/V))^{L/2},   KL = -(L/2) log(1 - c (1 - 1/V)),   path KL = (L/2) c log V.

TV <= eps needs K of about L (1 - 1/V) / (2 eps): the lower bound for the Euler sampler is met with
its constant. First hitting opens one position at a time: with the exact posterior it draws from the
law; with any other it draws from that predictor's own average over orders, and loses exactly the
expected sum of its divergences at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import log
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dlm.denoiser import Predictor
from dlm.lab import exact, pushed
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series, slope_line
from dlm.lab.experiments.tables import pairs_table, path_kl, process_of
from dlm.lab.oracle import Oracle
from dlm.lab.perturbed import Distorted
from dlm.lab.rates import PairError, masked_pairs, order, pair_error, pair_steps
from dlm.lab.symmetry import pair_equal
from dlm.processes import State
from dlm.samplers import Ancestral, Euler, EvenGrid, FirstHitting, GridSampler, Random
from dlm.samplers.reveal import RevealSampler

_EULER = "Liang et al. 2026, arXiv:2602.22505 (lower bound of order L / eps)"
_HITTING = "Liang et al. 2026, arXiv:2602.22505; Zheng et al. 2024, arXiv:2409.02908"


@final
@dataclass(frozen=True)
class Pairs(Experiment):
    """Sharp rates for masked diffusion.

    Args:
        lengths: L, even, for the closed forms.
        steps: K.
        symbols: V of the large laws; the pushed ones have 2.
        error: the total variation that is asked for.
        share: of a wrong law in the distorted predictor.
    """

    about: ClassVar[str] = "masked, sharp rates: steps grow like L / eps; first hitting is exact"
    lengths: tuple[int, ...] = (16, 64, 256, 1024)
    steps: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048)
    symbols: int = 32
    error: float = 0.05
    share: float = 0.2

    def run(self) -> Result:
        """Closed forms, then small laws pushed through, then first hitting."""
        panel, claims = self._large()
        needed, more = self._needed()
        return Result((panel, needed), (*claims, *more, *self._small(), *self._first_hitting()))

    def _large(self) -> tuple[Panel, list[Claim]]:
        """The kernels themselves on one pair of each class, against the closed forms."""
        process, series, worst = process_of("absorbing", self.symbols), [], 0.0
        equal = {}
        for k in self.steps:
            levels = torch.linspace(0, 1, k + 1, dtype=torch.float64)
            equal[k] = [pair_equal(kernel, process, levels) for kernel in (Ancestral(), Euler())]
        for length in self.lengths:
            made = [pair_error(equal[k][0], length).tv for k in self.steps]
            known = [self._known(k, length).tv for k in self.steps]
            euler = [pair_error(equal[k][1], length).tv for k in self.steps]
            worst = max(worst, *(abs(a - b) for a, b in zip(made + euler, known * 2, strict=True)))
            series.append(Series(f"L = {length}", self.steps, made))
            series.append(Series(f"L = {length}, closed form", self.steps, known, "predicted"))
        series.append(slope_line(self.steps, series[0].y[0], -1))
        rate = order(self.steps, list(series[0].y))
        claims = [
            Claim(
                "ancestral and Euler against closed form: largest gap in TV", worst, 0.0, 1e-9,
                "derived here", reference=_EULER,
            ),
            Claim("order of TV in steps", rate, 1.0, 0.05, "paper", reference=_EULER),
        ]  # fmt: skip
        title = "duplicated pairs, even levels"
        return Panel(title, "steps", "total variation", (*series,)), claims

    def _known(self, steps: int, length: int) -> PairError:
        return masked_pairs(np.linspace(0, 1, steps + 1), length, self.symbols)

    def _needed(self) -> tuple[Panel, list[Claim]]:
        """The steps that an error takes, by search in the closed form."""
        needed = [float(self._search(length)) for length in self.lengths]
        known = [pair_steps(self.error, length, self.symbols) for length in self.lengths]
        bound = [length * (1 - 1 / self.symbols) / (2 * self.error) for length in self.lengths]
        series = (
            Series("found", self.lengths, needed),
            Series("L (1 - 1/V) / (2 eps)", self.lengths, bound, "predicted"),
        )
        claims = [
            Claim(
                f"L = {self.lengths[-1]}: steps for TV {self.error:g}", needed[-1], known[-1], 1.0,
                "derived here",
            ),
            Claim(
                f"L = {self.lengths[-1]}: those steps over L (1 - 1/V) / (2 eps)",
                needed[-1] / bound[-1], 1.0, self.error, "paper", reference=_EULER,
            ),
            Claim(
                "order of the steps in L", -order(self.lengths, needed), 1.0, 0.02, "paper",
                reference=_EULER,
            ),
        ]  # fmt: skip
        return Panel(f"steps for TV = {self.error:g}", "length", "steps", series), claims

    def _search(self, length: int) -> int:
        low, high = 1, 2
        while self._known(high, length).tv > self.error:
            low, high = high, 2 * high
        while low < high:
            middle = (low + high) // 2
            if self._known(middle, length).tv > self.error:
                low = middle + 1
            else:
                high = middle
        return low

    def _small(self) -> list[Claim]:
        """Four tokens over two symbols, every path enumerated."""
        table, process, steps = pairs_table(2, 4), process_of("absorbing", 2), 4
        oracle, target = Oracle(table, process), exact.embed(table, process)
        law = pushed.grid_law(GridSampler(Ancestral(), EvenGrid(), steps=steps), oracle, 4)
        known = masked_pairs(np.linspace(0, 1, steps + 1), 4, 2)
        found = (
            ("TV", exact.total_variation(target, law).item(), known.tv),
            ("KL", exact.kl(target, law).item(), known.kl),
            ("path KL", path_kl(table, process, Ancestral(), steps), known.path_kl),
        )
        return [
            Claim(f"L = 4, {steps} steps, pushed: {name}", made, closed, 1e-10, "derived here")
            for name, made, closed in found
        ]

    def _first_hitting(self) -> list[Claim]:
        table, process = pairs_table(2, 4), process_of("absorbing", 2)
        oracle, target = Oracle(table, process), exact.embed(table, process)
        sampler = RevealSampler(FirstHitting(), Random(), steps=None)
        right = pushed.reveal_law(sampler, oracle, 4, [(1.0, [1] * 4)])
        wrong = Distorted(oracle, self.share, (3.0, 1.0))
        drawn = pushed.reveal_law(sampler, wrong, 4, [(1.0, [1] * 4)])
        one_by_one, divergence = sequential_law(wrong, table)
        return [
            Claim(
                "first hitting, exact posterior: TV to the law",
                exact.total_variation(target, right).item(), 0.0, 1e-12, "paper",
                reference=_HITTING,
            ),
            Claim(
                "first hitting, wrong posterior: TV to sequential sampling with it",
                exact.total_variation(one_by_one, drawn).item(), 0.0, 1e-12, "paper",
                reference=_HITTING,
            ),
            Claim(
                "first hitting, wrong posterior: KL against the divergence of the posterior",
                exact.kl(target, drawn).item(), divergence, 1e-12, "paper", "at most",
                _HITTING,
            ),
            Claim(
                "the wrong posterior is wrong: its divergence in nats", divergence, 0.05 * log(2),
                0.0, "ours", "at least",
            ),
        ]  # fmt: skip


def sequential_law(predictor: Predictor, table: Tensor) -> tuple[Tensor, float]:
    """One position after the other, averaged over all orders, and what that loses on the path.

    Args:
        predictor: for masks.
        table: the true law.

    Returns:
        The law, flat float64 (K^L,), and E over orders and sequences of sum_i log p / p_model of
        the conditionals, nats.
    """
    process, length = predictor.process, table.ndim
    assert process.mask_id is not None
    clean = exact.all_states(process.num_states, length)
    clean = clean[(clean != process.mask_id).all(-1)]
    place = (clean * process.num_states ** torch.arange(length - 1, -1, -1)).sum(-1)
    orders = list(permutations(range(length)))
    half = torch.tensor(0.5, dtype=torch.float64)  # masks: the level does not matter
    total = torch.zeros(len(clean), dtype=torch.float64)
    true, divergence = exact.embed(table, process)[place], 0.0
    for sequence in orders:
        log_chance = torch.zeros(len(clean), dtype=torch.float64)
        tokens = torch.full_like(clean, process.mask_id)
        for i in sequence:
            state = State(tokens)
            times = half.expand(tokens.shape)
            rows = predictor.predict(predictor.hidden(state, half[None]), state, times).log_loo
            log_chance = log_chance + rows[:, i].gather(-1, clean[:, i : i + 1])[:, 0]
            tokens = tokens.clone()
            tokens[:, i] = clean[:, i]
        total += log_chance.exp() / len(orders)
        divergence += exact.kl(true, log_chance.exp()).item() / len(orders)
    law = torch.zeros(process.num_states**length, dtype=torch.float64)
    return law.index_add(0, place, total), divergence
