"""Laws of the lab against closed forms, at lengths that cannot be enumerated, and against other
laws that are the same.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from dlm.lab import Oracle
from dlm.lab.laws import (
    Checksum,
    Copy,
    Dirichlet,
    Empirical,
    HiddenMarkov,
    Independent,
    Law,
    Lazy,
    MarkovChain,
    MdsCode,
    MixtureOfProducts,
    Ngram,
    Pairs,
    Permutation,
    Product,
    Repeated,
    Tunable,
    Zipf,
)
from dlm.lab.laws.chains import stationary
from dlm.processes import State
from dlm.random import Key
from tests.toys import double, uniform
from tests.unit.lab.law_cases import SKEW, long_run
from tests.unit.lab.law_sums import assert_same_logs

LONG = 512


def log(value: float) -> float:
    return math.log(value)


def random_evidence(law: Law, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, law.length, law.symbols)
    return 3 * torch.randn(shape, generator=generator, dtype=torch.float64)


def noisy(law: Law, level: float) -> tuple[State, torch.Tensor, torch.Tensor]:
    """Uniform noise at alpha = level on a draw of the law: state, log posterior, log marginal."""
    process = uniform(symbols=law.symbols)
    t = process.schedule.inverse(torch.tensor([level], dtype=torch.float64))
    key = Key(0, torch.arange(4))
    state = process.corrupt(law.sample(4, key=key), t.expand(4, 1), key=key)
    oracle = Oracle(law, process)
    return state, oracle.hidden(state, t), oracle.log_marginal(state, t)


# -- information, nats -------------------------------------------------------------------------

CODES = [  # law, Z, total correlation, dual total correlation
    (Product(LONG, 3, Zipf()), [0.0] * LONG, 0.0, 0.0),
    (Repeated(LONG, 5), [0.0, *[log(5)] * (LONG - 1)], (LONG - 1) * log(5), log(5)),
    (
        Repeated(7, 3, [1, 1, 2]),
        [0.0, *[1.5 * log(2)] * 6],
        9 * log(2),
        1.5 * log(2),
    ),
    (
        Pairs(LONG, 5),
        [j / (LONG - 1) * log(5) for j in range(LONG)],
        LONG / 2 * log(5),
        LONG / 2 * log(5),
    ),
    (Checksum(LONG, 5), [*[0.0] * (LONG - 1), log(5)], log(5), (LONG - 1) * log(5)),
    (MdsCode(9, 11, 4), [*[0.0] * 4, *[log(11)] * 5], 5 * log(11), 4 * log(11)),
    (
        Permutation(40),
        [log(40) - log(40 - j) for j in range(40)],
        40 * log(40) - math.lgamma(41),
        math.lgamma(41),
    ),
    (
        Copy(Product(32, 3)),
        [j / 63 * log(3) for j in range(64)],
        32 * log(3),
        32 * log(3),
    ),
    (Copy(Repeated(20, 3)), [0.0, *[log(3)] * 39], 39 * log(3), log(3)),
]


@pytest.mark.parametrize(("law", "curve", "total", "dual"), CODES, ids=lambda x: type(x).__name__)
def test_information_of_codes(law: Law, curve: Sequence[float], total: float, dual: float):
    assert law.curve().stderr is None
    np.testing.assert_allclose(law.curve().values, curve, rtol=1e-9, atol=1e-12)
    assert law.total_correlation().value == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert law.dual_total_correlation().value == pytest.approx(dual, rel=1e-9, abs=1e-9)
    single = torch.special.entr(law.marginals()).sum().item()
    assert law.entropy().value == pytest.approx(single - total, rel=1e-9)


TUNABLE = [(32, 4, 0.25, 0.25), (LONG, 8, 0.5, 0.25), (LONG, 8, 0.25, 0.5), (45, 3, 0.4, 0.6)]


@pytest.mark.parametrize(("length", "block", "repeated", "checksum"), TUNABLE)
def test_tunable_sets_both_correlations(length, block, repeated, checksum):
    law = Tunable(length, 3, block, repeated, checksum)
    r, c = round(repeated * length / block), round(checksum * length / block)
    total, dual = law.total_correlation().value, law.dual_total_correlation().value
    assert total == pytest.approx((r * (block - 1) + c) * log(3), rel=1e-9)
    assert dual == pytest.approx((r + c * (block - 1)) * log(3), rel=1e-9)


def test_tunable_takes_the_nearest_number_of_blocks():
    law = Tunable(20, 2, 3, 0.4, 0.2)  # 8 / 3 and 4 / 3 blocks
    assert [(type(part), part.length, n) for part, n in law.groups] == [
        (Repeated, 3, 3),
        (Checksum, 3, 1),
        (Product, 8, 1),
    ]


def test_a_mixture_has_at_most_log_components_of_dual_correlation():
    for seed in range(5):
        law = MixtureOfProducts(6, 3, 4, Dirichlet(0.2, seed))
        assert law.curve().stderr is None
        assert 0.1 < law.dual_total_correlation().value < log(4)
    apart = MixtureOfProducts(9, 2, 2, torch.eye(2)[:, None])
    assert apart.dual_total_correlation().value == pytest.approx(log(2), abs=1e-12)


CHAINS = [
    MarkovChain(64, 3, SKEW),
    MarkovChain(64, 3, SKEW, [0.0, 1.0, 3.0]),
    MarkovChain(64, 4, Lazy(0.9, Zipf())),
    MarkovChain(2, 3, SKEW),
]


@pytest.mark.parametrize("law", CHAINS, ids=["skew", "start", "lazy", "two"])
def test_information_of_a_chain_by_its_conditional_laws(law: MarkovChain):
    rows, now = law.transition.numpy(), law.initial.numpy()
    laws = [now := now @ rows if i else now for i in range(law.length)]
    assert law.marginals().numpy() == pytest.approx(np.array(laws), abs=1e-12)

    def nats(joint: np.ndarray) -> float:
        return float(-(joint[joint > 0] * np.log(joint[joint > 0])).sum())

    pairs = [p[:, None] * rows for p in laws[:-1]]
    entropy = nats(laws[0]) + sum(nats(pair) - nats(pair.sum(1)) for pair in pairs)
    single = sum(nats(p) for p in laws)
    given = nats(pairs[0]) - nats(pairs[0].sum(0)) + nats(pairs[-1]) - nats(pairs[-1].sum(1))
    for before, after in pairwise(pairs):
        triple = before[:, :, None] * rows  # (left, middle, right)
        assert triple.sum((0,)) == pytest.approx(after, abs=1e-12)
        given += nats(triple) - nats(triple.sum(1))
    assert law.entropy().value == pytest.approx(entropy, abs=1e-10)
    assert law.total_correlation().value == pytest.approx(single - entropy, abs=1e-9)
    assert law.dual_total_correlation().value == pytest.approx(entropy - given, abs=1e-9)


def test_the_curve_of_a_chain_by_exact_counts():
    law = MarkovChain(64, 3, Lazy(0.9))
    stay = [0.9**g for g in range(64)]
    told = []  # I(X_i; X_{i+g})
    for s in stay:
        row = np.array([s + (1 - s) / 3, (1 - s) / 3, (1 - s) / 3])
        told.append(log(3) + float((row[row > 0] * np.log(row[row > 0])).sum()))

    def chance(k: int, gap: int) -> Fraction:
        """Both ends of a gap are among k of 64 positions, and none between them."""
        return Fraction(math.comb(64 - gap - 1, k - 2) if k > 1 else 0, math.comb(64, k))

    known = [sum(float(chance(k, g)) * (64 - g) * told[g] for g in range(1, 64)) for k in range(65)]
    expected = [known[j] - known[j - 1] for j in range(1, 65)]
    np.testing.assert_allclose(law.curve().values, expected, rtol=1e-9, atol=1e-11)


# -- posteriors --------------------------------------------------------------------------------

LEVELS = (1e-9, 0.3, 0.9, 1 - 1e-6)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("length", [3, LONG])
def test_posterior_of_a_checksum_under_uniform_noise(length: int, level: float):
    law, size = Checksum(length, 5), 5
    state, posterior, marginal = noisy(law, level)
    total = state.tokens.sum(-1)
    place = (state.tokens - total[:, None]) % size
    power = level ** (length - 1)
    other = log(-math.expm1((length - 1) * log(level))) - log(size)
    expected = torch.full_like(posterior, other)
    high = math.log1p((size - 1) * power) - log(size)
    expected.scatter_(-1, place[..., None], high)
    assert_same_logs(posterior, expected, 1e-7 if level < 1e-6 else 1e-9)
    right = total % size == 0
    power = level**length
    sums = torch.where(right, double((size - 1) * power), double(-power))
    assert_same_logs(marginal, torch.log1p(sums) - length * log(size), 1e-9)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("length", [3, LONG])
def test_posterior_of_repeated_tokens_counts_them(length: int, level: float):
    law = Repeated(length, 5)
    state, posterior, _ = noisy(law, level)
    shown = torch.nn.functional.one_hot(state.tokens, 5).double()
    others = shown.sum(1, keepdim=True) - shown
    odds = math.log1p(4 * level) - math.log1p(-level)
    assert_same_logs(posterior, (others * odds).log_softmax(-1), 1e-8)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("length", [2, LONG])
def test_posterior_of_pairs_is_what_the_twin_shows(length: int, level: float):
    law = Pairs(length, 5)
    state, posterior, marginal = noisy(law, level)
    twins = state.tokens.reshape(-1, length // 2, 2)
    others = twins.flip(-1).reshape(-1, length)
    at_token = log(level + (1 - level) / 5)
    expected = torch.full_like(posterior, math.log1p(-level) - log(5))
    expected.scatter_(-1, others[..., None], at_token)
    assert_same_logs(posterior, expected, 1e-9)
    same = level**2 + (1 - level**2) / 5
    other = (1 - level) * (1 + level) / 5
    chances = torch.where(twins[..., 0] == twins[..., 1], double(same), double(other))
    assert_same_logs(marginal, (chances / 5).log().sum(-1), 1e-9)


def test_posterior_of_a_code_is_even_until_it_is_known():
    law = MdsCode(7, 11, 3)
    word = law.sample(1, key=Key(0, torch.arange(1)))
    evidence = torch.zeros(1, 7, 11, dtype=torch.float64)
    point = torch.nn.functional.one_hot(word, 11).double().log()
    for known in range(7):
        at = torch.arange(7)[None, :, None] < known
        posterior = law.log_posterior(torch.where(at, point, evidence)).exp()
        hidden = posterior[:, known:]
        rows = torch.full_like(hidden, 1 / 11) if known < 3 else point[:, known:].exp()
        torch.testing.assert_close(hidden, rows, rtol=1e-12, atol=1e-12)


def test_posterior_of_a_long_permutation_under_masks():
    law = Permutation(100)
    tokens = law.sample(3, key=Key(0, torch.arange(3)))
    shown = torch.arange(100) % 3 == 0  # 34 of them
    point = torch.nn.functional.one_hot(tokens, 100).double().log()
    evidence = torch.where(shown[:, None], point, -0.5)
    free = torch.ones(3, 100).scatter(1, tokens[:, shown], 0.0)
    expected = (free.double() / 66).log()[:, None].expand(3, 66, 100)
    assert_same_logs(law.log_posterior(evidence)[:, ~shown], expected)
    chance = math.lgamma(67) - math.lgamma(101) - 0.5 * 66
    assert law.log_marginal(evidence).tolist() == pytest.approx([chance] * 3, rel=1e-12)


def test_posterior_of_a_chain_by_its_neighbours():
    law = MarkovChain(LONG, 3, SKEW)
    word = law.sample(2, key=Key(0, torch.arange(2)))
    posterior = law.log_posterior(torch.nn.functional.one_hot(word, 3).double().log())
    rows = law.transition
    inner = rows[word[:, :-2]] * rows.T[word[:, 2:]]
    expected = inner / inner.sum(-1, keepdim=True)
    torch.testing.assert_close(posterior[:, 1:-1].exp(), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(posterior[:, -1].exp(), rows[word[:, -2]], rtol=1e-10, atol=0)
    begin = law.initial * rows.T[word[:, 1]]
    begin = begin / begin.sum(-1, keepdim=True)
    torch.testing.assert_close(posterior[:, 0].exp(), begin, rtol=1e-10, atol=1e-14)


# -- the same law under two names --------------------------------------------------------------

TEXT = [0, 1, 2, 0, 1, 1, 2, 0, 1, 2, 2, 1, 0, 0, 1, 2, 0, 2]


def bigram_rows(delta: float) -> tuple[list[float], list[list[float]]]:
    first = [TEXT.count(v) + delta for v in range(3)]
    pairs = list(pairwise(TEXT))
    return first, [[pairs.count((v, w)) + delta for w in range(3)] for v in range(3)]


TWINS: dict[str, tuple[Law, Law]] = {
    "hidden chain that shows its state": (
        HiddenMarkov(24, 3, 3, SKEW, torch.eye(3), [0.0, 1.0, 1.0]),
        MarkovChain(24, 3, SKEW, [0.0, 1.0, 1.0]),
    ),
    "hidden chain of one state": (
        HiddenMarkov(24, 3, 1, [[1.0]], [[1.0, 2.0, 5.0]]),
        Product(24, 3, [1.0, 2.0, 5.0]),
    ),
    "hidden chain that never moves": (
        HiddenMarkov(24, 3, 2, torch.eye(2), [[1, 2, 1], [3, 0, 1]], [1.0, 3.0]),
        MixtureOfProducts(24, 3, 2, [[[1, 2, 1]], [[3, 0, 1]]], [1.0, 3.0]),
    ),
    "bigram": (
        Ngram(24, 3, 2, TEXT, 0.5, "add"),
        MarkovChain(24, 3, bigram_rows(0.5)[1], bigram_rows(0.5)[0]),
    ),
    "chain that never moves": (
        MarkovChain(24, 3, torch.eye(3), [1, 2, 3]),
        Repeated(24, 3, [1, 2, 3]),
    ),
    "chain that forgets": (MarkovChain(24, 3, Lazy(0.0, [1, 2, 3])), Product(24, 3, [1, 2, 3])),
    "mixture of certain tokens": (
        MixtureOfProducts(24, 3, 3, torch.eye(3)[:, None], [1, 2, 3]),
        Repeated(24, 3, [1, 2, 3]),
    ),
    "mixture of one": (
        MixtureOfProducts(24, 3, 1, [[[1, 2, 3]]]),
        Product(24, 3, [1, 2, 3]),
    ),
    "training set of repeats": (
        Empirical(3, [[v] * 24 for v in (0, 1, 1, 2, 2, 2)]),
        Repeated(24, 3, [1, 2, 3]),
    ),
    "training set with noise": (
        Empirical(3, [[v] * 24 for v in (0, 1, 1, 2, 2, 2)], 0.3),
        MixtureOfProducts(24, 3, 3, (0.7 * torch.eye(3) + 0.1)[:, None], [1, 2, 3]),
    ),
    "blocks of two": (Independent([Repeated(2, 3)], [12]), Pairs(24, 3)),
    "blocks of one": (Independent([Product(1, 3, [1, 2, 3])] * 24), Product(24, 3, [1, 2, 3])),
    "tunable without blocks": (Tunable(24, 3, 4, 0.0, 0.0), Product(24, 3)),
    "tunable of one kind": (Tunable(24, 3, 24, 0.0, 1.0), Checksum(24, 3)),
    "code of dimension 1": (MdsCode(5, 5, 1), Repeated(5, 5)),
    "code without checks": (MdsCode(5, 5, 5), Product(5, 5)),
}


@pytest.mark.parametrize(("law", "twin"), TWINS.values(), ids=TWINS)
def test_equal_laws_say_the_same(law: Law, twin: Law):
    evidence = random_evidence(law)
    assert_same_logs(law.log_posterior(evidence), twin.log_posterior(evidence))
    assert_same_logs(law.log_marginal(evidence), twin.log_marginal(evidence))
    torch.testing.assert_close(law.marginals(), twin.marginals(), rtol=1e-10, atol=1e-14)
    key = Key(0, torch.arange(64))
    tokens = torch.cat([law.sample(64, key=key), twin.sample(64, key=key)])
    assert_same_logs(law.log_prob(tokens), twin.log_prob(tokens))
    assert law.log_prob(tokens).isfinite().all()


def test_a_copy_knows_its_twin_like_a_pair():
    copy, pairs = Copy(Product(6, 3)), Pairs(12, 3)
    evidence = random_evidence(copy)
    order = torch.tensor([place for i in range(6) for place in (i, i + 6)])
    assert_same_logs(
        copy.log_posterior(evidence)[:, order], pairs.log_posterior(evidence[:, order])
    )
    assert_same_logs(copy.log_marginal(evidence), pairs.log_marginal(evidence[:, order]))


# -- stationary laws ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_stationary_law_stays(seed: int):
    rows = torch.rand(7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = rows**6 / (rows**6).sum(-1, keepdim=True)
    law = stationary(rows)
    torch.testing.assert_close(law @ rows, law, rtol=1e-13, atol=0)
    torch.testing.assert_close(law, torch.tensor(long_run(rows.tolist())).double())


@pytest.mark.parametrize("chance", [1e-3, 1e-9, 1e-15, 1e-100])
def test_rare_states_keep_their_digits(chance: float):
    rows = torch.tensor([[1 - chance, chance], [0.5, 0.5]], dtype=torch.float64)
    assert stationary(rows)[1].item() == pytest.approx(chance / (0.5 + chance), rel=1e-12)


def test_states_far_from_each_other_belong_together():
    """A ring that turns one way, and a ladder: a state returns after many steps only."""
    ring = torch.eye(9, dtype=torch.float64).roll(1, 1)
    torch.testing.assert_close(stationary(ring), torch.full((9,), 1 / 9).double())
    up, down = torch.diag(torch.full((11,), 0.25), 1), torch.diag(torch.full((11,), 0.5), -1)
    ladder = (up + down).double()
    ladder += torch.diag(1 - ladder.sum(-1))
    expected = 0.5 ** torch.arange(12, dtype=torch.float64)
    torch.testing.assert_close(stationary(ladder), expected / expected.sum())


def test_states_that_are_left_have_no_share():
    """Not even one of rounding: what begins there is impossible."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.rand(6, 6, generator=generator, dtype=torch.float64)
        rows[:3, 3:] = 0.0
        order = torch.randperm(6, generator=generator)
        law = MarkovChain(4, 6, rows[order][:, order])
        assert torch.equal(law.initial == 0, order >= 3)
        assert torch.equal(law.marginals() == 0, (order >= 3).expand(4, -1))
