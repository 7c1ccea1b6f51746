"""Two errors: steps of finite size, and a posterior that is wrong. More steps mend one of them.

With the ancestral kernel and a predictor that is wrong by a known amount, for every number of steps

    path KL = [path KL of the exact posterior] + [what the predictor adds]        (`step_error`)

and the second part goes to the score error as steps go to zero,

    score error = integral over t of E rate * divergence = E bound(predictor) - H,

which is what theorems call eps_score. The posterior may be wrong by the same KL at every position
(for masks the score error is L times that), by a temperature, or because it is exact for a finite
training set in the place of the law: then the score error is the KL between the two laws. First
hitting has the second error alone.

Sources: Dmitriev, Huang & Wei 2026, arXiv:2602.15008 (both errors in one bound); Liang et al. 2026,
arXiv:2602.22505 (first hitting). The identities are derived here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, final

import torch
from torch import Tensor

from dlm.denoiser import Predictor
from dlm.errors import UserError
from dlm.lab import exact, pushed
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series
from dlm.lab.experiments.tables import even_times, process_of
from dlm.lab.laws import Draws, Empirical, Law
from dlm.lab.oracle import Oracle
from dlm.lab.perturbed import Noisy, Tempered, sampled_score_error, score_error, step_error
from dlm.random import Key
from dlm.samplers import Ancestral, FirstHitting, Random, RevealSampler

_NOISES = ("absorbing", "uniform")
_MOST = 300  # sequences of the law: paths go over pairs of noisy ones
_BOTH = "Dmitriev, Huang & Wei 2026, arXiv:2602.15008 (score error beside discretisation)"
_HITTING = "Liang et al. 2026, arXiv:2602.22505 (no error beyond that of the score)"
_QUADRATURE = 1e-5  # relative


@final
@dataclass(frozen=True)
class Estimation(Experiment):
    """Path KL of wrong predictors, split in two.

    Args:
        law: of at most 300 sequences, all of them possible.
        steps: K, rising by factors of two.
        errors: KL in nats a position of the noisy posteriors.
        temperature: of the tempered one.
        counts: sizes of training sets, rising.
        smoothing: chance that a token of a training sequence is replaced; above 0, else the KL to
            the law is infinite.
        samples: of the sampled score error.
        seed: of errors, training sets and samples.

    Raises:
        UserError: for a larger law, or one with impossible sequences.
    """

    about: ClassVar[str] = (
        "a wrong posterior: path KL = steps + estimate; steps mend only their own"
    )
    law: Law
    steps: tuple[int, ...] = (4, 8, 16, 32, 64)
    errors: tuple[float, ...] = (0.01, 0.1)
    temperature: float = 0.8
    counts: tuple[int, ...] = (30, 300, 3000)
    smoothing: float = 0.05
    samples: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        law = self.law
        if law.symbols**law.length > _MOST:
            raise UserError(
                f"estimation enumerates paths and takes laws of at most {_MOST} sequences, got "
                f"{law.symbols}^{law.length}"
            )
        if self._table.min() <= 0:
            raise UserError("estimation needs a law without impossible sequences")

    @cached_property
    def _table(self) -> Tensor:
        return self.law.table()

    def run(self) -> Result:
        """Both noises, every predictor."""
        panels, claims = [], []
        for noise in _NOISES:
            oracle = Oracle(self.law, process_of(noise, self.law.symbols))
            right = [self._path(oracle, oracle, k) for k in self.steps]
            series = [Series("exact posterior", self.steps, right)]
            for name, wrong in self._predictors(oracle):
                added = [self._added(wrong, oracle, k) for k in self.steps]
                total = [self._path(wrong, oracle, k) for k in self.steps]
                limit = score_error(wrong, oracle)
                series.append(Series(name, self.steps, total))
                both = [a + b for a, b in zip(right, added, strict=True)]
                series.append(Series(f"{name}: sum of both", self.steps, both, "predicted"))
                title = f"{noise}, {name}"
                claims += self._split(title, total, both, added, limit)
                claims.append(self._data_processing(title, wrong, oracle, both[-1]))
                claims += self._known(title, wrong, oracle, limit)
            claims += [*self._terminal(noise, oracle), self._sampled(noise, oracle)]
            panels.append(Panel(f"{noise} noise", "steps", "path KL, nats", (*series,)))
        claims += self._first_hitting()
        return Result((*panels, self._training_sets()), (*claims,))

    def _predictors(self, oracle: Oracle) -> Iterator[tuple[str, Predictor]]:
        for error in self.errors:
            yield f"wrong by {error:g} nats", Noisy(oracle, error, self.seed)
        yield f"temperature {self.temperature:g}", Tempered(oracle, self.temperature)
        for count in self.counts:
            yield f"{count} training sequences", Oracle(self._trained(count), oracle.process)

    def _trained(self, count: int) -> Empirical:
        draws = Draws(self.law, count, self.seed)
        return Empirical(self.law.symbols, draws, self.smoothing)

    def _path(self, predictor: Predictor, oracle: Oracle, steps: int) -> float:
        times = even_times(oracle.process, steps)
        return exact.path_kl(self._table, predictor, Ancestral(), times).item()

    def _added(self, wrong: Predictor, oracle: Oracle, steps: int) -> float:
        times = even_times(oracle.process, steps)
        return step_error(wrong, oracle, self._table, Ancestral(), times)

    def _split(
        self, title: str, total: list[float], both: list[float], added: list[float], limit: float
    ) -> list[Claim]:
        gap = max(abs(a - b) for a, b in zip(total, both, strict=True))
        beyond = 2 * added[-1] - added[-2]  # of steps twice as many: order 1
        return [
            Claim(f"{title}: path KL minus both errors, largest", gap, 0.0, 1e-9, "derived here"),
            Claim(
                f"{title}: what the posterior adds, steps to zero, over the score error",
                beyond / limit, 1.0, 0.05, "derived here", reference=_BOTH,
            ),
        ]  # fmt: skip

    def _data_processing(self, title: str, wrong: Predictor, oracle: Oracle, both: float) -> Claim:
        times = even_times(oracle.process, self.steps[-1])
        law = exact.output_law(wrong, Ancestral(), times, self.law.length)
        found = exact.kl(exact.embed(self._table, oracle.process), law).item()
        name = f"{title}: terminal KL at {self.steps[-1]} steps, at most both errors"
        return Claim(name, found, both, 1e-12, "paper", "at most", _BOTH)

    def _known(self, title: str, wrong: Predictor, oracle: Oracle, limit: float) -> Iterator[Claim]:
        """Score errors that are known without an integral."""
        if isinstance(wrong, Noisy) and oracle.process.mask_id is not None:
            known = self.law.length * wrong.error
            name = f"{title}: score error, L times that"
            yield Claim(name, limit, known, _QUADRATURE * known, "derived here")
        if isinstance(wrong, Oracle):
            known = exact.kl(self._table, wrong.law.table()).item()
            name = f"{title}: score error, KL between the laws"
            yield Claim(name, limit, known, _QUADRATURE * max(known, 1.0), "derived here")

    def _terminal(self, noise: str, oracle: Oracle) -> list[Claim]:
        """Total variation between the last two numbers of steps: halved, or hardly changed."""
        target = exact.embed(self._table, oracle.process)
        ratios = {}
        for name, predictor in (("exact", oracle), ("wrong", Noisy(oracle, max(self.errors)))):
            few, many = (
                exact.total_variation(
                    target,
                    exact.output_law(
                        predictor, Ancestral(), even_times(oracle.process, k), self.law.length
                    ),
                ).item()
                for k in self.steps[-2:]
            )
            ratios[name] = many / few
        text = f"{noise}: TV at {self.steps[-1]} steps over {self.steps[-2]}"
        return [
            Claim(f"{text}, exact posterior", ratios["exact"], 0.5, 0.1, "paper", reference=_BOTH),
            Claim(f"{text}, wrong by {max(self.errors):g} nats", ratios["wrong"], 0.8, 0.0, "paper",
                  "at least", _BOTH),
        ]  # fmt: skip

    def _sampled(self, noise: str, oracle: Oracle) -> Claim:
        """The estimate that serves laws of any size, against enumeration."""
        wrong = Tempered(oracle, self.temperature)
        key = Key(self.seed, torch.arange(self.samples)).fold("score error")
        found = sampled_score_error(wrong, oracle, self.samples, key=key)
        name = f"{noise}, temperature {self.temperature:g}: sampled score error"
        known = score_error(wrong, oracle)
        return Claim(name, found.value, known, 5 * found.stderr, "derived here")

    def _first_hitting(self) -> list[Claim]:
        oracle = Oracle(self.law, process_of("absorbing", self.law.symbols))
        sampler = RevealSampler(FirstHitting(), Random(), steps=None)
        sizes = [(1.0, [1] * self.law.length)]
        claims = []
        for error in self.errors:
            law = pushed.reveal_law(
                sampler, Noisy(oracle, error, self.seed), self.law.length, sizes
            )
            found = exact.kl(exact.embed(self._table, oracle.process), law).item()
            name = f"first hitting, wrong by {error:g} nats: terminal KL, at most L times that"
            known = self.law.length * error
            claims.append(Claim(name, found, known, 1e-9, "paper", "at most", _HITTING))
        return claims

    def _training_sets(self) -> Panel:
        kl = [exact.kl(self._table, self._trained(n).table()).item() for n in self.counts]
        floor = Empirical(self.law.symbols, Draws(self.law, 10 * self.counts[-1]), self.smoothing)
        least = exact.kl(self._table, floor.table()).item()
        lines = (
            Series("score error", self.counts, kl),
            Series("ten times the largest set", self.counts, [least] * len(self.counts), "slope"),
        )
        return Panel("finite training sets", "sequences", "nats", lines)
