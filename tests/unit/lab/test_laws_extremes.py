"""Laws of the lab at their limits, and the sums in logs that carry them there."""

from __future__ import annotations

import math

import pytest
import torch

from dlm.lab.laws import (
    Checksum,
    Copy,
    Dirichlet,
    Draws,
    Empirical,
    HiddenMarkov,
    Law,
    Lazy,
    MarkovChain,
    MixtureOfProducts,
    Ngram,
    Pairs,
    Permutation,
    Product,
    Repeated,
    Table,
    Tunable,
)
from dlm.lab.laws.logs import exclusive_logsumexp, exclusive_sum, log_matmul, log_scatter
from dlm.random import Key
from tests.unit.lab.law_cases import SKEW, SWITCH
from tests.unit.lab.law_sums import assert_same_logs

LONG = 512
LONG_LAWS: list[Law] = [
    MarkovChain(LONG, 4, Lazy(0.9)),
    MarkovChain(LONG, 3, SKEW, [1.0, 1.0, 0.0]),
    HiddenMarkov(LONG, 4, 2, SWITCH, Dirichlet(0.3)),
    Ngram(LONG, 3, 3, [0, 1, 2, 0, 1, 1, 2, 2, 0]),
    MixtureOfProducts(LONG, 4, 3, Dirichlet(0.3)),
    Product(LONG, 4, Dirichlet(0.3)),
    Repeated(LONG, 4),
    Pairs(LONG, 4),
    Checksum(LONG, 4),
    Tunable(LONG, 4, 8, 0.25, 0.25),
    Copy(MarkovChain(LONG // 2, 4, Lazy(0.9))),
    Empirical(4, Draws(MarkovChain(LONG, 4, Lazy(0.9)), 16), 0.01),
]


def name_of(law: Law) -> str:
    return type(law).__name__


def noised(law: Law, share: float) -> torch.Tensor:
    """Evidence of draws of the law under noise that replaces a share of the tokens."""
    key = Key(0, torch.arange(2))
    tokens = law.sample(2, key=key)
    even = (key.fold("even").uniform(law.length) * law.symbols).long()
    tokens = torch.where(key.fold("replaced").uniform(law.length) < share, even, tokens)
    spike = torch.nn.functional.one_hot(tokens, law.symbols).double()
    return ((1 - share) * spike + share / law.symbols).log()


@pytest.mark.parametrize("share", [1e-12, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("law", LONG_LAWS, ids=name_of)
def test_posteriors_of_long_laws_are_finite_and_consistent(law: Law, share: float):
    evidence = noised(law, share)
    posterior, marginal = law.log_posterior(evidence), law.log_marginal(evidence)
    assert marginal.isfinite().all()
    assert not posterior.isnan().any()
    sizes = posterior.exp().sum(-1)
    torch.testing.assert_close(sizes, torch.ones_like(sizes), rtol=1e-12, atol=0)
    # Without the evidence of one token the marginal is less by what that token is worth.
    for i in (0, LONG // 2, LONG - 1):
        rest = evidence.clone()
        rest[:, i] = 0.0
        worth = (posterior[:, i] + evidence[:, i]).logsumexp(-1)
        assert_same_logs(law.log_marginal(rest) + worth, marginal, 1e-9)


@pytest.mark.parametrize("law", LONG_LAWS, ids=name_of)
def test_long_laws_under_masks(law: Law):
    tokens = law.sample(2, key=Key(0, torch.arange(2)))
    shown = torch.nn.functional.one_hot(tokens, law.symbols).double().log()
    hidden = torch.arange(LONG)[:, None] % 3 > 0
    for evidence in (shown, torch.where(hidden, 0.0, shown), torch.zeros_like(shown)):
        posterior = law.log_posterior(evidence)
        assert not posterior.isnan().any()
        right = posterior.gather(-1, tokens[..., None])
        assert (right > -torch.inf).all()  # what was drawn is possible
        assert law.log_marginal(evidence).isfinite().all()
    assert_same_logs(law.log_marginal(shown), law.log_prob(tokens), 1e-9)
    assert_same_logs(law.log_marginal(torch.zeros_like(shown)), torch.zeros(2).double(), 1e-9)
    assert_same_logs(law.log_posterior(torch.zeros_like(shown))[0].exp(), law.marginals(), 1e-9)


def test_one_impossible_token_of_many_leaves_the_even_posterior():
    for law in (Repeated(LONG, 4), Pairs(LONG, 4), MarkovChain(LONG, 4, torch.eye(4), [1.0] * 4)):
        evidence = noised(law, 0.0)
        evidence[:, 7] = evidence[:, 7].roll(1, -1)
        assert (law.log_marginal(evidence) == -torch.inf).all()
        posterior = law.log_posterior(evidence)
        even = torch.full((2, 4), -math.log(4), dtype=torch.float64)
        assert_same_logs(posterior[:, 100], even)


def test_evidence_below_the_smallest_number_counts():
    """Products of 1e-400 against 1e-390: lost outside of logs."""
    law = MarkovChain(3, 2, [[1.0, 1e-300], [1e-300, 1.0]])
    evidence = torch.zeros(1, 3, 2, dtype=torch.float64)
    evidence[0, 0, 1] = evidence[0, 2, 0] = -2000.0
    # x_1 = 0 and x_3 = 1 but for 1e-300; one switch is dearer than any other way
    posterior = law.log_posterior(evidence)[0, 1].exp()
    torch.testing.assert_close(posterior, torch.full((2,), 0.5).double())
    marginal = law.log_marginal(evidence).item()
    assert marginal == pytest.approx(2 * math.log(0.5) + math.log(4) + math.log(1e-300), abs=1e-9)


def test_a_long_permutation_with_one_symbol_twice_is_impossible():
    law = Permutation(40)
    evidence = torch.zeros(1, 40, 40, dtype=torch.float64)
    evidence[0, :2, 1:] = -torch.inf
    assert law.log_marginal(evidence).item() == -torch.inf
    posterior = law.log_posterior(evidence)[0]
    even = torch.full((40,), -math.log(40), dtype=torch.float64)
    assert_same_logs(posterior[5], even)
    assert posterior[0, 0] == -torch.inf  # the other one shows 0


def test_tables_of_many_sequences_are_cut_in_parts():
    table = Checksum(17, 2).table()
    assert table.sum().item() == pytest.approx(1, abs=1e-12)
    even = torch.ones(1, dtype=torch.float64)
    for _ in range(17):  # a leading 0 keeps the parity, a leading 1 turns it
        even = torch.cat([even, 1 - even])
    torch.testing.assert_close(table.flatten(), even / 2**16, rtol=1e-12, atol=0)


def test_curves_of_tables_are_exact_as_long_as_they_are_cheap():
    assert Table(12, 2, torch.rand(2**12)).curve().stderr is None  # 3^12 numbers
    assert Table(4, 17, torch.rand(17**4)).curve().stderr is None  # 18^4
    long = Table(18, 2, torch.rand(2**18))  # 3^18
    assert long.exact_curve() is None
    assert long.exact_entropy() > 0


def test_a_wide_checksum_takes_noise_that_replaces_tokens():
    law = Checksum(3, 50_000)
    posterior = law.log_posterior(noised(law, 0.25))
    sizes = posterior.exp().sum(-1)
    torch.testing.assert_close(sizes, torch.ones_like(sizes))
    tokens = law.sample(2, key=Key(0, torch.arange(2)))
    assert (tokens.sum(-1) % 50_000 == 0).all()


# -- sums in logs ------------------------------------------------------------------------------

INF = math.inf


def logs_of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_sums_of_all_the_others():
    values = logs_of(1.0, -INF, 3.0, 4.0)
    assert exclusive_sum(values, 0).tolist() == [-INF, 8.0, -INF, -INF]
    twice = torch.stack([values, logs_of(1, 2, 3, 4)])
    assert exclusive_sum(twice, 1)[1].tolist() == [9.0, 8.0, 7.0, 6.0]
    assert exclusive_sum(twice, 0)[0].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert exclusive_sum(logs_of(5.0), 0).tolist() == [0.0]
    found = exclusive_logsumexp(logs_of(-INF, -INF, 700.0, -700.0), 0)
    assert found.tolist() == [700.0, 700.0, -700.0, 700.0]
    assert exclusive_logsumexp(logs_of(5.0), 0).tolist() == [-INF]


def test_products_of_matrices_in_logs_lose_no_term():
    generator = torch.Generator().manual_seed(0)
    rows = 400 * torch.randn(5, 7, 4, generator=generator, dtype=torch.float64)
    rows[torch.rand(rows.shape, generator=generator) < 0.3] = -INF
    kernel = torch.rand(5, 4, 6, generator=generator, dtype=torch.float64)
    kernel[torch.rand(kernel.shape, generator=generator) < 0.4] = 0.0
    right = (rows[..., None] + kernel[:, None].log()).logsumexp(-2)
    assert_same_logs(log_matmul(rows, kernel), right)
    alike = (rows[..., None] + kernel[0].log()).logsumexp(-2)
    assert_same_logs(log_matmul(rows, kernel[0]), alike)
    assert_same_logs(log_matmul(rows[0], kernel[0]), alike[0])


def test_a_product_that_is_nearly_lost_keeps_its_digits():
    """Below 1e-308 a float64 has few of them."""
    rows, kernel = logs_of(0.0, -733.0, -734.0)[None], torch.tensor([[0.0], [1.0], [1.0]]).double()
    expected = torch.logaddexp(rows[:, 1], rows[:, 2])[:, None]
    assert_same_logs(log_matmul(rows, kernel), expected, 1e-13)


def test_sums_by_group_in_logs():
    values = torch.stack([logs_of(-900.0, 1.0, -900.0, -INF), logs_of(-INF, 0.0, -INF, 2.0)])
    found = log_scatter(values, torch.tensor([0, 1, 0, 3]), 4)
    expected = torch.stack([logs_of(math.log(2) - 900, 1, -INF, -INF), logs_of(-INF, 0, -INF, 2)])
    assert_same_logs(found, expected)
