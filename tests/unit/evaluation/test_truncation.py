"""Why times are not cut off at eps: the usual way of reporting is biased low, by a known amount.

With alpha = 1 - (1 - eps) t and the plain mean over t in [eps, 1], a masked model reports truth -
eps (g(0) + g(1) - truth) + O(eps^2), g(alpha) being the cross-entropy of a token at level alpha.
Everything here is enumerated: two dependent tokens, an exact model, Gauss-Legendre quadrature.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from dlm.processes import Absorbing, Prediction, State
from dlm.schedules import Linear

V = 3
LAW = torch.tensor([[0.30, 0.06, 0.02], [0.06, 0.20, 0.04], [0.02, 0.04, 0.26]]).double()
TRUTH = -(LAW * LAW.log()).sum().item() / 2  # nats per token


def expected_rate(process, t):
    """Mean of the bound's integrand over the data and the masks, nats per token and unit of t."""
    alpha = process.schedule.alpha(t).item()
    total = 0.0
    for x0 in itertools.product(range(V), repeat=2):
        for masked in itertools.product([False, True], repeat=2):
            chance = LAW[x0] * math.prod(1 - alpha if m else alpha for m in masked)
            z = [V if m else x for x, m in zip(x0, masked, strict=True)]
            given = [LAW.sum(0) if other == V else LAW[other] for other in reversed(z)]
            loo = torch.zeros(2, V + 1).double()
            loo[:, :V] = torch.stack([row / row.sum() for row in given])
            prediction = Prediction(process, State(torch.tensor(z)), t, log_loo=loo.log())
            total += chance * process.nelbo(prediction, torch.tensor(x0)).sum() / 2
    return float(total)


def mean_rate(process, low, high):
    """Mean of the expected rate over t in (low, high)."""
    nodes, weights = np.polynomial.legendre.leggauss(8)  # exact: the rate is a polynomial
    times = torch.tensor(low + (high - low) * (nodes + 1) / 2)
    rates = [expected_rate(process, t) for t in times]
    return float(np.dot(rates, weights)) / 2


def test_the_whole_range_gives_the_truth():
    assert mean_rate(Absorbing(V + 1, V, Linear()), 0, 1) == pytest.approx(TRUTH, abs=1e-12)


@pytest.mark.parametrize("eps", [1e-2, 1e-3, 1e-4])
def test_the_truncated_mean_is_no_bound(eps):
    marginal = LAW.sum(0)
    unigram = -(marginal * marginal.log()).sum().item()  # g(0): nothing is known
    full_context = 2 * TRUTH - unigram  # g(1): the other token is known
    reported = mean_rate(Absorbing(V + 1, V, Linear(alpha_min=eps)), eps, 1)
    bias = -eps * (unigram + full_context - TRUTH)
    assert reported < TRUTH
    assert reported - TRUTH == pytest.approx(bias, abs=5 * eps**2)
