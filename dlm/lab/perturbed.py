"""Predictors that are wrong on purpose, by a known amount: estimation error beside discretisation.

The loss of a sampler has two parts: steps of finite size, which an exact predictor shows alone, and
a predictor that is not exact. For a predictor of leave-one-out posteriors the second is, in nats a
sequence,

    score error = E bound(predictor) - E bound(oracle) = integral over t of E rate * divergence,

the path KL that continuous time leaves (`score_error`, `sampled_score_error`). The oracle of
another law q is such a predictor, and its score error is KL(p || q): so a finite training set is
the oracle of `dlm.lab.laws.Empirical` in the place of that of its law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, product
from typing import final

import torch
from torch import Tensor

from dlm.denoiser import Context, Predictor
from dlm.errors import UserError
from dlm.lab import exact
from dlm.lab.laws import Estimate
from dlm.lab.oracle import Oracle
from dlm.processes import Prediction, State
from dlm.processes.prediction import Posterior
from dlm.random import Key
from dlm.samplers import Kernel
from dlm.samplers.filters import Temperature

_FACTOR = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: numbers sequences, as random.Key does
_HALVINGS = 60  # of the interval that holds the scale
_FIRST = 1e-9  # the first time: at 0 nothing is noise, and rates may be infinite
_LARGEST = 1e6  # scale of a perturbation: what it makes unlikely has no weight left


@final
class Noisy:
    """The exact posterior, perturbed so that every position is wrong by the same KL.

    log p'(v) = log p(v) + scale g(v), normalised. g is normal noise, a function of the whole noisy
    sequence, the position and the symbol and of nothing else, so the result is a function as a
    network is. The scale is found for each row: KL(p || p') = error, whatever p. The support is
    kept, so a posterior that is certain stays certain; one that leaves all other symbols together
    less than about 1e-6 error may be wrong by less.

    Args:
        oracle: the exact posterior.
        error: KL in nats a position; 0 is the oracle.
        seed: of g.

    Raises:
        UserError: for an error that is negative or not finite.
    """

    def __init__(self, oracle: Predictor, error: float, seed: int = 0) -> None:
        if not 0 <= error < math.inf:
            raise UserError(f"error must be at least 0 nats and finite, got {error}")
        self.oracle, self.error, self.seed = oracle, error, seed
        self.process, self.time_conditioning = oracle.process, oracle.time_conditioning

    def passes(self, length: int) -> int:
        """Those of the oracle."""
        return self.oracle.passes(length)

    def hidden(self, state: State, t: Tensor, context: Context | None = None) -> Tensor:
        """Log leave-one-out posterior, float64 (B, L, K)."""
        log_p = _log_loo(self.oracle, state, t, context)
        if self.error == 0:
            return log_p
        u = Key(self.seed, _numbers(state)).fold("noisy").uniform(*log_p.shape[1:])
        noise = torch.special.ndtri(u.clamp(min=1e-16))
        return _at_kl(log_p, noise, self.error)

    def predict(self, hidden: Tensor, state: State, t: Tensor) -> Prediction:
        """The rows as they are."""
        return Prediction(self.process, state, t, log_loo=hidden)


@final
class Tempered:
    """A posterior of the oracle to the power 1 / temperature: too sure below 1, too unsure above.

    Args:
        oracle: the exact posterior.
        temperature: above 0.
        on: which posterior is meant, the leave-one-out one or the denoiser.
    """

    def __init__(self, oracle: Predictor, temperature: float, on: Posterior = "loo") -> None:
        self.oracle, self.temper = oracle, Temperature(temperature)
        self.on: Posterior = on
        self.process, self.time_conditioning = oracle.process, oracle.time_conditioning

    def passes(self, length: int) -> int:
        """Those of the oracle."""
        return self.oracle.passes(length)

    def hidden(self, state: State, t: Tensor, context: Context | None = None) -> Tensor:
        """That of the oracle."""
        return self.oracle.hidden(state, t, context)

    def predict(self, hidden: Tensor, state: State, t: Tensor) -> Prediction:
        """The oracle's prediction, tempered."""
        return self.oracle.predict(hidden, state, t).map(self.temper, on=self.on)


@final
class Distorted:
    """The exact posterior with a share of a fixed wrong law mixed in, where it is certain too.

    Args:
        oracle: the exact posterior.
        share: of the wrong law, in [0, 1).
        wrong: weights of the V symbols; the last ones may be left out, they are 0.

    Raises:
        UserError: for another share, or weights that are no law over the symbols.
    """

    def __init__(self, oracle: Predictor, share: float, wrong: Sequence[float]) -> None:
        if not 0 <= share < 1:
            raise UserError(f"share must be in [0, 1), got {share}")
        self.oracle, self.share, self.process = oracle, share, oracle.process
        self.time_conditioning = oracle.time_conditioning
        symbols = self.process.num_states - (self.process.mask_id is not None)
        if (
            len(wrong) > symbols
            or not all(0 <= weight < math.inf for weight in wrong)
            or not any(wrong)
        ):
            raise UserError(
                f"wrong must be weights of at most {symbols} symbols, none negative and not all 0, "
                f"got {list(wrong)}"
            )
        law = torch.zeros(self.process.num_states, dtype=torch.float64)
        law[: len(wrong)] = torch.tensor(wrong, dtype=torch.float64)
        self.wrong = law / law.sum()

    def passes(self, length: int) -> int:
        """Those of the oracle."""
        return self.oracle.passes(length)

    def hidden(self, state: State, t: Tensor, context: Context | None = None) -> Tensor:
        """Log of the mixture, float64 (B, L, K)."""
        right = _log_loo(self.oracle, state, t, context).exp()
        return torch.log((1 - self.share) * right + self.share * self.wrong)

    def predict(self, hidden: Tensor, state: State, t: Tensor) -> Prediction:
        """The rows as they are."""
        return Prediction(self.process, state, t, log_loo=hidden)


def score_error(perturbed: Predictor, oracle: Oracle, nodes: int = 30) -> float:
    """Expected estimation error in nats a sequence, by enumeration of all sequences and states.

    Args:
        perturbed: a predictor on the process of the oracle, over alpha from 1 to 0.
        oracle: of a law with few sequences.
        nodes: of the quadrature in t.

    Raises:
        UserError: for another process.
    """
    _same_process(perturbed, oracle)
    law = oracle.law.table()
    bounds = [
        exact.time_integral(law, predictor, oracle.process.nelbo, nodes)
        for predictor in (perturbed, oracle)
    ]
    p = law.flatten()
    return torch.where(p > 0, p * (bounds[0] - bounds[1]), 0.0).sum().item()


def step_error(
    perturbed: Predictor, oracle: Predictor, law: Tensor, kernel: Kernel, times: Tensor
) -> float:
    """What a wrong predictor adds to the path KL of a sampler with steps of finite size.

    The exact reverse step is not a product over positions; the product nearest to it is that of the
    ancestral kernel with the exact posterior, and KL splits there,

        KL(exact || wrong) = KL(exact || ancestral) + sum_i KL(ancestral^i || wrong^i),

    for every state. The second part is summed here, over all states and steps.

    Args:
        perturbed, oracle: on one process.
        law: the table, (V,) * L.
        kernel: the ancestral one, or another whose law of a position the oracle makes exact.
        times: (steps + 1,), from noise to data.

    Returns:
        Nats a sequence.

    Raises:
        UserError: for another process.
    """
    _same_process(perturbed, oracle)
    process, total = oracle.process, 0.0
    noises = exact.every_noise(process, law.ndim)
    for noise, (t, s) in product(noises, pairwise(times)):
        states = exact.with_noise(exact.all_states(process.num_states, law.ndim), noise)
        places = t.expand(states.tokens.shape)
        right, wrong = (
            kernel.log_probs(p.predict(p.hidden(states, t[None]), states, places), s).double()
            for p in (oracle, perturbed)
        )
        rows = torch.where(right > -torch.inf, right.exp() * (right - wrong), 0.0).sum((-2, -1))
        chance = exact.noised_law(law, process, t, noise)
        total += torch.where(chance > 0, chance * rows, 0.0).sum().item()
    return total / len(noises)


def sampled_score_error(
    perturbed: Predictor, oracle: Oracle, samples: int, *, key: Key
) -> Estimate:
    """`score_error` of any law, from draws of a sequence, a time and noise.

    Args:
        perturbed: a predictor on the process of the oracle.
        oracle: of any law.
        samples: N, at least 2; one time in each of N parts of (0, 1).
        key: rows (N,).

    Returns:
        Mean and standard error in nats a sequence; the latter is that of independent times, so
        rather too large.

    Raises:
        UserError: for another process, fewer than two samples, or another number of rows.
    """
    _same_process(perturbed, oracle)
    if samples < 2:
        raise UserError(f"samples must be at least 2, got {samples}")
    x0 = oracle.law.sample(samples, key=key)
    t = ((torch.arange(samples) + key.fold("time").uniform()) / samples).clamp(min=_FIRST)
    state = oracle.process.corrupt(x0, t[:, None], key=key.fold("noise"))
    times = t[:, None].expand(x0.shape)
    model, right = (p.predict(p.hidden(state, t), state, times) for p in (perturbed, oracle))
    nats = score_divergence(model, right).sum(-1)
    return Estimate(nats.mean().item(), (nats.std() / samples**0.5).item())


def score_divergence(model: Prediction, right: Prediction) -> Tensor:
    """What an estimate of the ratios m(y) / m(z) costs, float64 (...): nats per unit of t.

    The jump rate into z times sum_{y != z} phi(exact ratio, ratio of the model), phi(x, y) = y - x
    + x log(x / y): the mean over x0, given z, of the difference of the two bounds.
    """
    process, state = right.process, right.state
    log_x, log_y = right.log_ratios.double(), model.log_ratios.double()
    x, y = log_x.exp(), log_y.exp()
    phi = y - x + torch.where(x > 0, x * (log_x - log_y), 0.0)
    rate = process.rate_into(state, right.t)  # phi is 0 at y = z, where both ratios are 1
    return torch.where(process.active(state), rate * phi.sum(-1), 0.0)


def _log_loo(oracle: Predictor, state: State, t: Tensor, context: Context | None) -> Tensor:
    """Log leave-one-out posterior at times (B,) or (1,), float64 (B, L, K)."""
    times = t.reshape(-1, 1).expand(state.tokens.shape)
    return oracle.predict(oracle.hidden(state, t, context), state, times).log_loo.double()


def _same_process(perturbed: Predictor, oracle: Predictor) -> None:
    if perturbed.process != oracle.process:
        raise UserError(
            f"the predictors are on different processes: {perturbed.process} and {oracle.process}"
        )


def _numbers(state: State) -> Tensor:
    """A number of each noisy sequence, int64 (B,), equal for equal ones (and hardly for others)."""
    parts = [state.tokens] if state.noise is None else [state.tokens, state.noise]
    tokens = torch.cat(parts, -1)
    number = torch.zeros(len(tokens), dtype=torch.int64)
    for column in tokens.unbind(-1):
        number = (number + column + 1) * _FACTOR  # wraps, as int64 does
        number = number ^ (number >> 29)
    return number


def _at_kl(log_p: Tensor, noise: Tensor, error: float) -> Tensor:
    """log p + scale noise, normalised, with KL(p || .) = error.

    KL = log E exp(scale g) - scale E g grows with the scale, from 0 to infinity where g varies. In
    a row without a choice g - E g is 0, and nothing changes.
    """
    possible = log_p > -torch.inf
    p, g = log_p.exp(), torch.where(possible, noise, 0.0)
    mean = (p * g).sum(-1, keepdim=True)

    def moved(log_scale: Tensor) -> tuple[Tensor, Tensor]:
        tilted = log_p + log_scale.exp() * (g - mean)
        return tilted, tilted.logsumexp(-1, keepdim=True)

    low = torch.full_like(mean, -30.0)
    high = torch.full_like(mean, _LARGEST).log()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = moved(middle)[1] < error
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    tilted, total = moved((low + high) / 2)
    return tilted - total
