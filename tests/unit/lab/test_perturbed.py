"""Predictors that are wrong by a known amount: how wrong, and what that does to a sampler."""

import math

import pytest
import torch

from dlm import UserError
from dlm.denoiser import Predictor
from dlm.lab import Distorted, Noisy, Oracle, Tempered, exact
from dlm.lab.laws import Checksum, Dirichlet, Draws, Empirical, Lazy, MarkovChain, Table
from dlm.lab.perturbed import sampled_score_error, score_divergence, score_error, step_error
from dlm.processes import State
from dlm.random import Key
from dlm.samplers import Ancestral
from tests.toys import absorbing, hybrid, lifted, uniform

LAW = Table(3, 3, Dirichlet(0.7, seed=1))
MAKES = [absorbing, uniform, hybrid]


def asked(predictor: Predictor, t: float = 0.4):
    """All states of three tokens, and what is said of them."""
    process = predictor.process
    time = torch.tensor(t, dtype=torch.float64)
    states = State(exact.all_states(process.num_states, 3))
    times = time.expand(states.tokens.shape)
    return states, predictor.predict(predictor.hidden(states, time[None]), states, times), time


def kl_rows(right, wrong):
    return torch.where(right > -torch.inf, right.exp() * (right - wrong), 0.0).sum(-1)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("error", [1e-6, 0.01, 0.5, 3.0])
def test_a_noisy_posterior_is_wrong_by_what_was_asked_everywhere(make, error):
    oracle = Oracle(LAW, make(symbols=3))
    _, right, _ = asked(oracle)
    _, wrong, _ = asked(Noisy(oracle, error))
    found = kl_rows(right.log_loo, wrong.log_loo)
    assert found.min().item() == pytest.approx(error, rel=1e-6)
    assert found.max().item() == pytest.approx(error, rel=1e-6)
    torch.testing.assert_close(
        wrong.log_loo.exp().sum(-1), torch.ones_like(found), rtol=0, atol=1e-12
    )
    assert torch.equal(right.log_loo == -torch.inf, wrong.log_loo == -torch.inf)


def test_a_noisy_posterior_is_a_function_of_the_state_and_its_seed():
    oracle = Oracle(LAW, uniform(symbols=3))
    states, whole, t = asked(Noisy(oracle, 0.1))
    noisy = Noisy(oracle, 0.1)
    for row in (0, 5, 26):
        alone = noisy.hidden(State(states.tokens[row : row + 1]), t[None])
        torch.testing.assert_close(alone[0], whole.log_loo[row], rtol=0, atol=1e-12)
    _, other, _ = asked(Noisy(oracle, 0.1, seed=1))
    assert (other.log_loo - whole.log_loo).abs().max() > 0.01
    tilt = (whole.log_loo - asked(oracle)[1].log_loo)[:, 0]
    tilt = tilt - tilt.mean(-1, keepdim=True)
    directions = tilt / tilt.norm(dim=-1, keepdim=True)  # without the scale, which the law decides
    apart = (directions[:, None] - directions).norm(dim=-1) + torch.eye(27)
    assert apart.min() > 1e-6  # every state has its own, also one that permutes another


def test_a_row_that_is_nearly_certain_may_be_wrong_by_less():
    oracle = Oracle(Checksum(3, 3), uniform(symbols=3))
    for noise, least in ((1e-3, 0.1), (1e-9, 0.0)):
        _, right, _ = asked(oracle, noise)
        _, wrong, _ = asked(Noisy(oracle, 0.1), noise)
        found = kl_rows(right.log_loo, wrong.log_loo)
        assert found.min().item() == pytest.approx(least, abs=1e-3)
        assert found.max().item() == pytest.approx(0.1, rel=1e-6)


def test_no_error_is_the_oracle_and_certainty_stays():
    oracle = Oracle(LAW, absorbing(symbols=3))
    assert torch.equal(asked(Noisy(oracle, 0.0))[1].log_loo, asked(oracle)[1].log_loo)
    certain = Table(3, 3, torch.eye(27, dtype=torch.float64)[5].reshape(3, 3, 3))
    sure = Oracle(certain, absorbing(symbols=3))
    right, wrong = asked(sure)[1].log_loo, asked(Noisy(sure, 0.3))[1].log_loo
    certain_rows = right.amax(-1) == 0  # elsewhere the state is impossible
    assert certain_rows.any()
    assert torch.equal(right[certain_rows], wrong[certain_rows])


def test_noisy_sees_the_noise_that_a_process_keeps():
    oracle = Oracle(LAW, lifted(symbols=3))
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    noise = torch.tensor([[1, 1, 1], [2, 2, 1]])
    hidden = Noisy(oracle, 0.1).hidden(State(tokens, noise), torch.full((2,), 0.4).double())
    right = oracle.hidden(State(tokens, noise), torch.full((2,), 0.4).double())
    gaps = hidden - right
    assert (gaps[0] - gaps[1]).abs().max() > 1e-3


@pytest.mark.parametrize("on", ["loo", "denoiser"])
def test_a_tempered_posterior_is_a_power_of_the_one_that_was_named(on):
    oracle = Oracle(LAW, uniform(symbols=3))
    _, right, _ = asked(oracle)
    _, wrong, _ = asked(Tempered(oracle, 0.5, on=on))
    before, after = (getattr(p, f"log_{on}") for p in (right, wrong))
    torch.testing.assert_close(after, (2 * before).log_softmax(-1), rtol=0, atol=1e-12)


def test_a_distorted_posterior_is_a_mixture():
    oracle = Oracle(LAW, uniform(symbols=3))
    right, wrong = asked(oracle)[1].log_loo.exp(), asked(Distorted(oracle, 0.2, (3, 1)))[1].log_loo
    law = torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(wrong.exp(), 0.8 * right + 0.2 * law, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [*MAKES, lifted])
def test_the_score_error_of_the_oracle_of_another_law_is_the_kl_between_the_laws(make):
    length, process = (2 if make is lifted else 3), make(symbols=3)  # lifted: 3^L noises
    law, other = Table(length, 3, Dirichlet(0.7, 1)), Table(length, 3, Dirichlet(2.0, 2))
    known = exact.kl(law.table(), other.table()).item()
    found = score_error(Oracle(other, process), Oracle(law, process), nodes=40)
    assert found == pytest.approx(known, rel=2e-5)
    assert score_error(Oracle(law, process), Oracle(law, process)) == 0.0


def test_under_masks_the_score_error_is_that_of_the_rows_times_the_length():
    oracle = Oracle(LAW, absorbing(symbols=3))
    assert score_error(Noisy(oracle, 0.05), oracle) == pytest.approx(0.15, rel=1e-6)


@pytest.mark.parametrize("make", [*MAKES, lifted])
def test_the_sampled_score_error_is_within_its_stated_error(make):
    law = Table(2 if make is lifted else 3, 3, Dirichlet(0.7, 1))
    oracle = Oracle(law, make(symbols=3))
    wrong = Distorted(oracle, 0.3, (1, 1, 4))
    key = Key(0, torch.arange(6000))
    found = sampled_score_error(wrong, oracle, 6000, key=key)
    known = score_error(wrong, oracle, nodes=40)
    assert 0 < found.stderr < 0.1 * known
    assert found.value == pytest.approx(known, abs=4.5 * found.stderr)


def test_sampled_times_are_one_in_each_part():
    """A density of times that is not even would shift the mean by less than the stated error."""
    oracle = Oracle(LAW, uniform(symbols=3))
    wrong, seen = Tempered(oracle, 0.5), []
    ask = wrong.predict

    def watch(hidden, state, t):
        seen.append(t[:, 0])
        return ask(hidden, state, t)

    wrong.predict = watch
    sampled_score_error(wrong, oracle, 50, key=Key(0, torch.arange(50)))
    (times,) = seen
    assert (times * 50).long().tolist() == list(range(50))
    assert 0.2 < (times * 50 % 1).std() < 0.4


@pytest.mark.parametrize("make", MAKES)
def test_a_divergence_of_scores_is_zero_for_the_exact_ones_and_positive_else(make):
    oracle = Oracle(LAW, make(symbols=3))
    _, right, _ = asked(oracle)
    _, wrong, _ = asked(Tempered(oracle, 0.5))
    assert score_divergence(right, right).abs().max() < 1e-12
    shown = score_divergence(wrong, right)
    assert shown.min() > -1e-12
    assert shown.max() > 1e-3


@pytest.mark.parametrize("make", [absorbing, uniform, lifted])
def test_path_kl_is_that_of_the_steps_plus_that_of_the_predictor(make):
    oracle = Oracle(LAW, make(symbols=3))
    table = LAW.table()
    times = oracle.process.schedule.inverse(torch.linspace(0, 1, 4, dtype=torch.float64))
    steps = exact.path_kl(table, oracle, Ancestral(), times).item()
    for wrong in (Noisy(oracle, 0.2), Tempered(oracle, 1.5), Distorted(oracle, 0.5, (1, 2, 3))):
        whole = exact.path_kl(table, wrong, Ancestral(), times).item()
        added = step_error(wrong, oracle, table, Ancestral(), times)
        assert added > 0.01
        assert whole == pytest.approx(steps + added, abs=1e-10)


def test_a_training_set_that_grows_is_less_wrong():
    chain = MarkovChain(4, 3, Lazy(0.5))
    oracle = Oracle(chain, absorbing(symbols=3))
    errors = [
        score_error(Oracle(Empirical(3, Draws(chain, n), 0.05), oracle.process), oracle)
        for n in (20, 200, 2000)
    ]
    assert errors[0] > 2 * errors[1] > 2 * errors[2] > 0


def test_refusals():
    oracle = Oracle(LAW, absorbing(symbols=3))
    for error in (-1.0, math.nan, math.inf):
        with pytest.raises(
            UserError, match=f"error must be at least 0 nats and finite, got {error}"
        ):
            Noisy(oracle, error)
    with pytest.raises(UserError, match="share must be in"):
        Distorted(oracle, 1.0, (1, 1))
    for wrong in ((1, 1, 1, 1), (), (0, 0), (1, -1), (math.nan, 1)):
        with pytest.raises(UserError, match="wrong must be weights of at most 3 symbols"):
            Distorted(oracle, 0.1, wrong)
    with pytest.raises(UserError, match="temperature must be positive"):
        Tempered(oracle, 0.0)
    other = Oracle(LAW, uniform(symbols=3))
    with pytest.raises(UserError, match="different processes"):
        score_error(other, oracle)
    with pytest.raises(UserError, match="different processes"):
        sampled_score_error(other, oracle, 4, key=Key(0, torch.arange(4)))
    with pytest.raises(UserError, match="as many rows"):
        sampled_score_error(Noisy(oracle, 0.1), oracle, 4, key=Key(0, torch.arange(3)))
    with pytest.raises(UserError, match="samples must be at least 2, got 1"):
        sampled_score_error(Noisy(oracle, 0.1), oracle, 1, key=Key(0, torch.arange(1)))
    with pytest.raises(UserError, match="different processes"):
        step_error(other, oracle, LAW.table(), Ancestral(), torch.tensor([1.0, 0.0]).double())
