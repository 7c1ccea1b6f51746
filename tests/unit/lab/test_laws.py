"""Laws of the lab against sums over all sequences."""

import numpy as np
import pytest
import torch

from dlm.lab import Oracle, exact
from dlm.lab.laws import logs
from dlm.processes import State
from dlm.random import Key
from tests.toys import absorbing, hybrid, prior, uniform
from tests.unit.lab.law_cases import CASES, Case, concrete_laws
from tests.unit.lab.law_sums import (
    EVIDENCE,
    assert_same_logs,
    evidence_of,
    numbers_of,
    sums,
    table_of_case,
)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
TIMES = (0.02, 0.4, 0.9, 1.0)
NOISES = [absorbing, uniform, hybrid, prior]
ENUMERATED = [
    case
    for case in CASES
    if case.law.symbols > 1 and (case.law.symbols + 1) ** case.law.length <= 1300
]


def test_every_family_has_a_case():
    assert {type(case.law) for case in CASES} == concrete_laws()
    assert {type(case.law) for case in ENUMERATED} == concrete_laws()


@every_case
def test_probabilities_are_those_of_the_definition(case: Case):
    tokens, log_p = sums(case.name)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert_same_logs(case.law.log_prob(tokens), log_p)
    table = torch.from_numpy(table_of_case(case))
    torch.testing.assert_close(case.law.table(), table, rtol=1e-10, atol=1e-14)


@every_case
@pytest.mark.parametrize("kind", EVIDENCE)
def test_posterior_and_marginal_are_sums_over_all_sequences(case: Case, kind: str):
    evidence = evidence_of(kind, case)
    posterior, marginal = sums(case.name).posterior(evidence)
    assert_same_logs(case.law.log_posterior(evidence), posterior)
    assert_same_logs(case.law.log_marginal(evidence), marginal)


@every_case
def test_marginals_are_those_of_the_table(case: Case):
    table = table_of_case(case)
    axes = range(table.ndim)
    rows = np.stack([table.sum(tuple(j for j in axes if j != i)) for i in axes])
    np.testing.assert_allclose(case.law.marginals().numpy(), rows, rtol=1e-10, atol=1e-14)


@every_case
def test_entropy_curve_and_correlations_are_those_of_the_subsets(case: Case):
    law, numbers = case.law, numbers_of(table_of_case(case))
    entropy, curve = law.entropy(), law.curve()
    total, dual = law.total_correlation(), law.dual_total_correlation()
    assert (entropy.stderr, curve.stderr, total.stderr, dual.stderr) == (0, None, 0, 0)
    assert entropy.value == pytest.approx(numbers.entropy, abs=1e-10)
    np.testing.assert_allclose(curve.values, numbers.curve, rtol=0, atol=1e-10)
    assert total.value == pytest.approx(numbers.total, abs=1e-10)
    assert dual.value == pytest.approx(numbers.dual, abs=1e-10)


@every_case
def test_draws_follow_the_table(case: Case):
    count = 4000
    tokens = case.law.sample(count, key=Key(3, torch.arange(count)))
    assert tokens.dtype == torch.int64
    assert tokens.shape == (count, case.law.length)
    found = np.zeros([case.law.symbols] * case.law.length)
    np.add.at(found, tuple(tokens.T.numpy()), 1.0)
    expected = count * table_of_case(case)
    assert found[expected == 0].sum() == 0
    often = expected >= 5
    cells = [*zip(found[often], expected[often], strict=True)]
    if expected[~often].sum() >= 5:
        cells.append((found[~often].sum(), expected[~often].sum()))
    freedom = len(cells) - 1
    square = sum((f - e) ** 2 / e for f, e in cells)
    assert square < freedom + 4 * (2 * freedom) ** 0.5 + 8  # beyond 1e-4 for any freedom


@every_case
def test_a_sequence_depends_on_its_own_row_of_the_key(case: Case):
    rows = torch.tensor([3, 0, 17, 4, 2**40, 9, 5, 1])
    together = case.law.sample(8, key=Key(0, rows))
    alone = torch.cat([case.law.sample(1, key=Key(0, row[None])) for row in rows])
    assert torch.equal(together, alone)
    if case.law.entropy().value > 1:
        assert len(together.unique(dim=0)) > 1
        assert not torch.equal(together, case.law.sample(8, key=Key(1, rows)))


@every_case
def test_the_ends_of_the_uniforms_give_possible_sequences(case: Case):
    for u in (0.0, 1 - 2.0**-53):
        tokens = case.law.from_uniforms(torch.full((1, case.law.draws), u, dtype=torch.float64))
        assert case.law.log_prob(tokens).isfinite().all()


@every_case
def test_a_large_batch_is_cut_without_a_trace(case: Case, monkeypatch):
    evidence = [evidence_of(kind, case) for kind in ("mixed", "replaced", "steep")]
    whole = [(case.law.log_posterior(e), case.law.log_marginal(e)) for e in evidence]
    monkeypatch.setattr(logs, "CHUNK", 1)
    for (posterior, marginal), e in zip(whole, evidence, strict=True):
        assert_same_logs(case.law.log_posterior(e), posterior)
        assert_same_logs(case.law.log_marginal(e), marginal)


@every_case
def test_an_empty_batch_stays_empty(case: Case):
    law = case.law
    nothing = torch.zeros(0, law.length, law.symbols, dtype=torch.float64)
    tokens = law.sample(0, key=Key(0, torch.arange(0)))
    assert tokens.shape == (0, law.length)
    assert law.log_prob(tokens).shape == (0,)
    assert law.log_posterior(nothing).shape == nothing.shape
    assert law.log_marginal(nothing).shape == (0,)


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.__name__)
@pytest.mark.parametrize("case", ENUMERATED, ids=lambda case: case.name)
def test_the_oracle_of_a_law_is_that_of_its_table(case: Case, noise):
    process, table = noise(symbols=case.law.symbols), case.law.table()
    states = exact.all_states(process.num_states, case.law.length)
    of_law, of_table = Oracle(case.law, process), Oracle(table, process)
    for time in TIMES:
        t = torch.tensor(time, dtype=torch.float64)
        chance = exact.noised_law(table, process, t)
        state = State(states[chance > 0])
        times = t.expand(state.tokens.shape)
        found, expected = (
            oracle.predict(oracle.hidden(state, t[None]), state, times).log_loo
            for oracle in (of_law, of_table)
        )
        assert_same_logs(found, expected)
        assert_same_logs(of_law.log_marginal(state, t[None]), chance[chance > 0].log())


def test_rows_of_a_batch_may_have_their_own_times():
    case = next(case for case in CASES if case.name == "checksum_even")
    oracle = Oracle(case.law, uniform(symbols=case.law.symbols))
    state, t = State(sums(case.name).tokens[:8]), torch.linspace(0.1, 1, 8).double()
    together = oracle.hidden(state, t)
    alone = [oracle.hidden(state.at(torch.arange(8) == n), t[n, None]) for n in range(8)]
    assert_same_logs(together, torch.cat(alone))
