"""Estimated entropies and curves of laws against exact ones, and the families of weights."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dlm.lab.laws import (
    Copy,
    Dirichlet,
    Draws,
    Empirical,
    HiddenMarkov,
    Independent,
    Law,
    Lazy,
    Letters,
    MarkovChain,
    MixtureOfProducts,
    Ngram,
    Product,
    Repeated,
    Zipf,
    sampled_curve,
    sampled_entropy,
)
from tests.unit.lab.law_cases import CASES, SKEW, Case

SURE = 4.5  # standard errors
KNOWN = [case for case in CASES if case.law.length > 2 and not case.name.endswith("sure")]


def assert_estimates(value: float, stderr: float, exact: float) -> None:
    """Within its standard errors; without one, equal."""
    assert abs(value - exact) <= SURE * stderr + 1e-9


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case.name)
def test_estimates_of_small_laws(case: Case):
    entropy, curve = sampled_entropy(case.law, 500, 0), sampled_curve(case.law, 500, 0)
    assert_estimates(*entropy, case.law.entropy().value)
    assert entropy.stderr < 0.12
    assert curve.stderr is not None
    for value, stderr, exact in zip(
        curve.values, curve.stderr, case.law.curve().values, strict=True
    ):
        assert_estimates(value, stderr, exact)
        assert stderr < 0.06


@pytest.mark.parametrize("name", ["hidden_start", "mixture", "trigram"])
def test_errors_of_estimates_are_of_the_right_size(name: str):
    """Over many seeds |estimate - exact| / error is that of a normal law in the mean, 0.8."""
    law = next(case.law for case in CASES if case.name == name)
    entropy, curve = law.entropy().value, np.array(law.curve().values)
    ratios = []
    for seed in range(100):
        found, estimate = sampled_entropy(law, 100, seed), sampled_curve(law, 50, seed)
        ratio = (np.array(estimate.values) - curve)[1:] / np.array(estimate.stderr)[1:]
        ratios.append([(found.value - entropy) / found.stderr, *ratio])
    mean = np.abs(ratios).mean(0)
    assert mean == pytest.approx(0.8, abs=0.25)  # its own error is 0.06


def test_estimates_depend_on_their_seed_only():
    law = HiddenMarkov(12, 4, 2, Lazy(0.8), Dirichlet(0.3))
    assert law.entropy() == law.entropy(seed=0) != law.entropy(seed=1)
    assert law.curve() == law.curve(seed=0) != law.curve(seed=1)
    assert law.entropy(samples=4096).stderr < law.entropy(samples=64).stderr / 5


ROWS = [1.0, 2.0, 3.0]
LONG: dict[str, tuple[Law, Law]] = {  # estimated, exact
    "hidden": (HiddenMarkov(16, 3, 3, SKEW, torch.eye(3)), MarkovChain(16, 3, SKEW)),
    "mixture": (
        MixtureOfProducts(16, 3, 3, torch.eye(3)[:, None], ROWS),
        Repeated(16, 3, ROWS),
    ),
    "mixture of equals": (MixtureOfProducts(16, 3, 2, [[ROWS], [ROWS]]), Product(16, 3, ROWS)),
    "ngram": (
        Ngram(16, 2, 2, [0, 1, 1, 0, 0, 0, 1], 1.0, "add"),
        MarkovChain(16, 2, [[3.0, 3.0], [2.0, 2.0]], [5.0, 4.0]),
    ),
    "empirical": (
        Empirical(3, [[v] * 16 for v in (0, 1, 1, 2, 2, 2)]),
        Repeated(16, 3, ROWS),
    ),
    "copy": (
        Copy(HiddenMarkov(11, 3, 3, SKEW, torch.eye(3))),
        Copy(MarkovChain(11, 3, SKEW)),
    ),
    "blocks": (
        Independent([HiddenMarkov(11, 3, 3, SKEW, torch.eye(3)), Repeated(6, 3)]),
        Independent([MarkovChain(11, 3, SKEW), Repeated(6, 3)]),
    ),
}


@pytest.mark.parametrize(("law", "exact"), LONG.values(), ids=LONG)
def test_estimates_of_long_laws(law: Law, exact: Law):
    curve, known = law.curve(), exact.curve()
    assert curve.stderr is not None
    assert known.stderr is None
    for value, stderr, right in zip(curve.values, curve.stderr, known.values, strict=True):
        assert_estimates(value, stderr, right)
        assert stderr < 0.12
    assert_estimates(*law.entropy(), exact.entropy().value)
    assert law.entropy().stderr < 0.12
    assert (law.entropy().stderr > 0) == (law.exact_entropy() is None)
    assert_estimates(*law.total_correlation(), exact.total_correlation().value)
    assert_estimates(*law.dual_total_correlation(), exact.dual_total_correlation().value)
    assert law.total_correlation().stderr < 0.12
    assert law.dual_total_correlation().stderr < 0.12 * law.length


# -- weights -----------------------------------------------------------------------------------

BETA: dict[float, Callable[[np.ndarray], np.ndarray]] = {  # P(first of two weights <= x)
    0.5: lambda x: 2 / math.pi * np.arcsin(np.sqrt(x)),
    1.0: lambda x: x,
    2.0: lambda x: 3 * x**2 - 2 * x**3,
}


@pytest.mark.parametrize("concentration", BETA)
def test_dirichlet_weights_of_two_symbols_follow_their_law(concentration: float):
    count = 20_000
    shares = Dirichlet(concentration).log_weights((count, 2)).softmax(-1)[:, 0]
    ranks = (np.arange(count) + 0.5) / count
    distance = np.abs(BETA[concentration](shares.sort().values.numpy()) - ranks).max()
    assert distance < 1.95 / count**0.5  # Kolmogorov: exceeded with chance 1e-3


@pytest.mark.parametrize("concentration", [0.05, 0.7, 6.0])
def test_dirichlet_weights_have_their_moments(concentration: float):
    count, size = 20_000, 5
    shares = Dirichlet(concentration, 1).log_weights((count, size)).softmax(-1)
    mean, square = 1 / size, (concentration + 1) / (size * (size * concentration + 1))
    for found, expected in ((shares, mean), (shares.square(), square)):
        errors = found.std(0) / count**0.5
        assert ((found.mean(0) - expected).abs() < SURE * errors).all()


def test_dirichlet_weights_are_none_that_were_rejected():
    """A gamma variate of shape 0.1 is below e^-400 with chance e^-40; rejected ones are 0."""
    assert Dirichlet(0.1).log_weights((20_000,)).min().item() > -400


def test_dirichlet_weights_depend_on_their_seed():
    one, other = Dirichlet(1.0, 0), Dirichlet(1.0, 1)
    assert torch.equal(one.log_weights((3, 4)), one.log_weights((3, 4)))
    assert not torch.equal(one.log_weights((3, 4)), other.log_weights((3, 4)))
    assert one.log_weights((3, 4)).unique().numel() == 12


def test_zipf_weights():
    rows = Product(2, 4, Zipf(2.0)).marginals()
    row = torch.tensor([1, 1 / 4, 1 / 9, 1 / 16], dtype=torch.float64)
    torch.testing.assert_close(rows, (row / row.sum()).expand(2, 4))


def test_lazy_rows_keep_or_draw():
    law = MarkovChain(3, 3, Lazy(0.6, [1.0, 2.0, 5.0]))
    new = torch.tensor([0.125, 0.25, 0.625], dtype=torch.float64)
    torch.testing.assert_close(law.transition, 0.6 * torch.eye(3).double() + 0.4 * new)
    torch.testing.assert_close(law.initial, new)
    flow = law.initial[:, None] * law.transition
    torch.testing.assert_close(flow, flow.T)
    even = MarkovChain(3, 3, Lazy()).transition
    torch.testing.assert_close(even, 0.5 * torch.eye(3).double() + 1 / 6)
    zipf = MarkovChain(3, 3, Lazy(0.0, Zipf())).transition
    torch.testing.assert_close(zipf, torch.tensor([[6, 3, 2]] * 3).double() / 11)


def test_a_varied_mixture_has_rows_of_its_own_at_every_position():
    varied = MixtureOfProducts(3, 4, 2, Dirichlet(1.0))
    alike = MixtureOfProducts(3, 4, 2, Dirichlet(1.0), varied=False)
    assert varied.rows.flatten(0, 1).unique(dim=0).shape == (6, 4)
    assert alike.rows.flatten(0, 1).unique(dim=0).shape == (2, 4)


# -- texts and training sets -------------------------------------------------------------------


def test_letters_of_a_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Abba, ABBA!\n\n C3cab", "utf-8")
    letters = Letters(path)
    assert letters.text() == "abba abba c cab"
    assert letters.alphabet(10) == "ab c"
    assert letters.tokens(10).tolist() == [0, 1, 1, 0, 2, 0, 1, 1, 0, 2, 3, 2, 3, 0, 1]
    assert letters.alphabet(4) == "ab c"
    assert letters.alphabet(3) == "ab_"
    assert letters.tokens(3).tolist() == [0, 1, 1, 0, 2, 0, 1, 1, 0, 2, 2, 2, 2, 0, 1]
    law = Ngram(3, 3, 2, letters)
    assert torch.equal(law.marginals(), Ngram(3, 3, 2, letters.tokens(3)).marginals())


def test_the_default_text_is_austen():
    letters = Letters()
    assert letters.text().startswith("the family of dashwood had long been settled in sussex")
    assert set(letters.alphabet(27)) <= set(" abcdefghijklmnopqrstuvwxyz")
    assert len(letters.alphabet(20)) == 20
    assert letters.alphabet(3)[:2] == " e"


def test_draws_are_a_training_set_of_the_law():
    law = MarkovChain(4, 2, Lazy(0.8))
    stored = Draws(law, 4000, seed=5).tokens()
    empirical = Empirical(2, Draws(law, 4000, seed=5))
    assert torch.equal(empirical.table(), Empirical(2, stored).table())
    counts = np.zeros([2] * 4)
    np.add.at(counts, tuple(stored.T.numpy()), 1.0)
    np.testing.assert_allclose(empirical.table().numpy(), counts / 4000, atol=1e-12)
    assert (empirical.table() - law.table()).abs().sum().item() < 0.1
    assert not torch.equal(stored, Draws(law, 4000, seed=6).tokens())
    assert torch.equal(stored[:7], Draws(law, 7, seed=5).tokens())
