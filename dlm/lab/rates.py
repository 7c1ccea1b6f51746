"""Predictions for the lab: orders, and errors of samplers in closed form.

For a process that noises tokens independently, and the sampler whose steps are the exact reverse
marginals of each token, one step from t to s loses

    E KL = sum_i H(X_s^i, X_t^{-i}) - (L - 1) H(X_t) - H(X_s)
         = TC(X_s) + DTC(X_t) - sum_i I(X_s^i; X_t^{-i})

nats: what the tokens still share after the step and no longer know from each other. The sum over
the steps is the path KL. For masks it depends on the information curve Z alone: with

    g(alpha) = sum_i H(X_i | every other token shown with probability alpha)
             = L sum_j Binomial(j; L - 1, alpha) (H_1 - Z_{j+1})

int g = H(X), and an ancestral grid loses sum_k (a_{k+1} - a_k) g(a_k) - int g, a left Riemann
error. The best grids for many steps have density sqrt(-g') and lose (int sqrt(-g'))^2 / (2 K).

Sources: the step cost is Dmitriev, Huang & Wei 2026 (COLT), theorem 2, in another form; the rest is
derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlm.lab import exact
from dlm.processes import Process
from dlm.samplers.curve import InformationCurve


def order(steps: Sequence[float], errors: Sequence[float], last: int = 3) -> float:
    """Minus the slope of log error against log steps, by least squares over the last points."""
    x, y = np.log(np.asarray(steps[-last:])), np.log(np.asarray(errors[-last:]))
    return float(-np.polyfit(x, y, 1)[0])


# -- any process, small tables -----------------------------------------------------------------


def step_cost(table: Tensor, process: Process, s: Tensor, t: Tensor) -> float:
    """E KL of one step from t to s in nats, from entropies alone.

    Args:
        table: a law (V,) * L, float64.
        process: one that keeps no noise.
        s, t: times, float64 scalars, s < t.
    """
    length = table.ndim
    mixed = sum(exact.entropy(_mixed_law(table, process, s, t, i)) for i in range(length))
    after = exact.entropy(exact.noised_law(table, process, s))
    before = exact.entropy(exact.noised_law(table, process, t))
    return float(mixed - (length - 1) * before - after)


def _mixed_law(table: Tensor, process: Process, s: Tensor, t: Tensor, early: int) -> Tensor:
    """The law of token `early` at time s and all the others at time t."""
    law = exact.embed(table, process).reshape([process.num_states] * table.ndim)
    for i in range(table.ndim):
        kernel = exact.channel(process, s if i == early else t)
        law = torch.einsum("i...,ij->...j", law, kernel)  # axis 0 leaves, its noise comes last
    return law


def cheapest_path(cost: np.ndarray, steps: int) -> tuple[list[int], float]:
    """The path of so many steps from the first point to the last of least cost.

    Args:
        cost: cost[i, j] of a step from i to j, float64 (n, n); used for i < j.
        steps: K <= n - 1.

    Returns:
        The K + 1 points and the total.
    """
    upper = np.where(np.triu(np.ones_like(cost, dtype=bool), 1), cost, np.inf)
    best = np.full(len(cost), np.inf)
    best[0] = 0.0
    choices = []
    for _ in range(steps):
        totals = best[:, None] + upper
        choices.append(totals.argmin(0))
        best = totals.min(0)
    path = [len(cost) - 1]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return path[::-1], float(best[-1])


# -- masks, from the information curve ---------------------------------------------------------


def binomial(trials: int, chance: np.ndarray) -> np.ndarray:
    """The binomial law for each chance (n,), float64 (n, trials + 1)."""
    k = np.arange(trials + 1)
    ways = np.array([math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1)
                     for i in k])  # fmt: skip
    p = np.asarray(chance, dtype=np.float64)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = np.where(k > 0, k * np.log(p), 0.0)
        misses = np.where(k < trials, (trials - k) * np.log1p(-p), 0.0)
    return np.exp(ways + hits + misses)


def known_information(curve: InformationCurve, levels: np.ndarray) -> np.ndarray:
    """f(alpha) = L E Z: what the shown tokens tell about every token, nats, float64 (n,).

    g = sum_i H(X_i) - f, so f(0) = 0, f(1) = sum_i I(X_i; X_-i), int f = TC.
    """
    length = curve.length
    return length * (binomial(length - 1, np.asarray(levels)) @ np.asarray(curve.values))


def masked_path_kl(curve: InformationCurve, levels: np.ndarray) -> float:
    """Path KL of the ancestral sampler for masks on these levels, nats."""
    known = known_information(curve, levels[:-1])
    return curve.total_correlation - float(np.diff(levels) @ known)


def known_slope(curve: InformationCurve, levels: np.ndarray) -> np.ndarray:
    """-g' = f' = L (L - 1) E dZ, float64 (n,): derivative of a Bernstein polynomial."""
    length = curve.length
    if length == 1:
        return np.zeros(len(levels))
    weights = binomial(length - 2, np.asarray(levels))
    return length * (length - 1) * (weights @ np.diff(curve.values))


class Continuum(NamedTuple):
    """The best grid for many steps.

    constant: lim K E KL; levels: K + 1 of them at even quantiles of the density sqrt(-g').
    """

    constant: float
    levels: np.ndarray


def continuum_grid(curve: InformationCurve, steps: int, points: int = 4001) -> Continuum:
    """Quantiles of sqrt(-g') and the constant (int sqrt(-g'))^2 / 2."""
    alpha = np.linspace(0, 1, points)
    density = np.sqrt(np.maximum(known_slope(curve, alpha), 0.0))
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(alpha))])
    levels = np.interp(np.linspace(0, mass[-1], steps + 1), mass, alpha)
    levels[0], levels[-1] = 0.0, 1.0
    return Continuum(float(mass[-1] ** 2 / 2), levels)


# -- curves in closed form ---------------------------------------------------------------------


def table_curve(table: Tensor) -> InformationCurve:
    """Z of a small table, by the entropies of all subsets."""
    length = table.ndim
    sums, counts = np.zeros(length + 1), np.zeros(length + 1)
    for subset in range(2**length):
        gone = [i for i in range(length) if not subset >> i & 1]
        marginal = table.sum(gone) if gone else table
        sums[length - len(gone)] += float(exact.entropy(marginal)) if len(gone) < length else 0.0
        counts[length - len(gone)] += 1
    mean = sums / counts
    values = mean[1] + mean[:-1] - mean[1:]
    return InformationCurve((0.0, *values[1:].tolist()))


# -- duplicated pairs under masks --------------------------------------------------------------


class PairError(NamedTuple):
    """What a sampler loses on L / 2 pairs X_{2i-1} = X_{2i} ~ Uniform(V)."""

    tv: float
    kl: float
    path_kl: float


def masked_pairs(levels: np.ndarray, length: int, symbols: int) -> PairError:
    """Ancestral steps (and Euler's, on the linear schedule): a pair breaks if it opens together.

    c = sum_k (a_{k+1} - a_k)^2 is the chance that both of a pair open in one step, 1 - 1/V that
    they then differ.

    Source: derived here; the example behind the lower bound of Liang et al. 2026, arXiv:2602.22505.
    """
    together = float((np.diff(levels) ** 2).sum())
    return pair_error(1 - together * (1 - 1 / symbols), length, together * math.log(symbols))


def pair_error(equal: float, length: int, path_kl: float = math.nan) -> PairError:
    """Total variation and KL of L / 2 independent pairs, each equal with this probability."""
    pairs = length / 2
    log_equal = math.log(equal)
    return PairError(-math.expm1(pairs * log_equal), -pairs * log_equal, pairs * path_kl)


def pair_steps(error: float, length: int, symbols: int) -> float:
    """The even steps that a total variation takes: 1 / c for the c that gives it."""
    return (1 - 1 / symbols) / -math.expm1(2 / length * math.log1p(-error))
