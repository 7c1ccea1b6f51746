"""Every formula of a process against the dense reference, on laws small enough to enumerate.

The reference (dlm.lab.exact) knows the channel and Bayes' rule and shares no formula with the
processes.
"""

import math

import pytest
import torch

from dlm import Prediction
from dlm.lab import exact
from dlm.processes import Prior
from dlm.schedules import Cosine, Geometric, Linear, Polynomial
from tests.toys import correlated_law, double, everywhere, processes, some_noise

SCHEDULES = [Linear(), Linear(1e-3), Cosine(), Polynomial(2.0), Geometric()]
CASES = [p for schedule in SCHEDULES for p in processes(schedule)]
LAW = correlated_law()
LENGTH = LAW.ndim

pytestmark = pytest.mark.parametrize("process", CASES, ids=repr)


def denoiser_by_bayes(process, states, t):
    """p(x0^i = v | z) from the joint table alone, (N, L, K)."""
    clean = exact.all_states(LAW.shape[0], LENGTH)
    given = exact.rows_of(exact.channel(process, t, some_noise(process, LENGTH)), clean)
    position = torch.arange(LENGTH)
    chance = given[torch.arange(len(clean))[None, :, None], position, states.tokens[:, None]]
    weights = chance.prod(-1) * LAW.flatten()
    onehot = torch.nn.functional.one_hot(clean, process.num_states).double()
    joint = torch.einsum("nx,xlk->nlk", weights, onehot)
    return joint / joint.sum(-1, keepdim=True)


def chance_of(process, states, clean, t):
    """q_t(z | x0), (N, L)."""
    given = exact.rows_of(exact.channel(process, t, some_noise(process, LENGTH)), clean)
    return given.gather(-1, states.tokens[..., None]).squeeze(-1)


def test_denoiser_from_the_leave_one_out_posterior(process):
    t = double(0.37)
    states, prediction, reachable = everywhere(process, LAW, t)
    expected = denoiser_by_bayes(process, states, t)
    assert torch.allclose(prediction.log_denoiser.exp()[reachable], expected[reachable], atol=1e-12)


def test_conversions_undo_each_other(process):
    t = double(0.37)
    states, prediction, _ = everywhere(process, LAW, t)
    active = process.active(states)
    by_denoiser = Prediction(process, states, prediction.t, log_denoiser=prediction.log_denoiser)
    by_score = Prediction(process, states, prediction.t, log_ratios=prediction.log_ratios)
    for other in (by_denoiser, by_score):
        assert torch.allclose(
            other.log_loo.exp()[active], prediction.log_loo.exp()[active], atol=1e-12
        )
    for name in ("log_loo", "log_denoiser"):
        assert torch.allclose(getattr(prediction, name).logsumexp(-1), double(0.0), atol=1e-12)


def test_marginal_and_ratios(process):
    t = double(0.37)
    states, prediction, reachable = everywhere(process, LAW, t)
    noise = some_noise(process, LENGTH)
    law = exact.noised_law(LAW, process, t, noise).reshape([process.num_states] * LENGTH)
    for i in range(LENGTH):
        moved = law.movedim(i, -1)[
            tuple(torch.cat([states.tokens[:, :i], states.tokens[:, i + 1 :]], 1).T)
        ]
        conditional = moved / moved.sum(-1, keepdim=True)
        marginal = process.log_marginal(prediction.log_loo, states, t).exp()[:, i]
        assert torch.allclose(marginal[reachable], conditional[reachable], atol=1e-12)
        ratios = prediction.log_ratios.exp()[reachable, i]
        at = states.tokens[reachable, i, None]
        assert torch.allclose(
            ratios * conditional[reachable].gather(-1, at), conditional[reachable], atol=1e-12
        )


@pytest.mark.parametrize("s", [0.0, 0.2])
def test_posterior_is_the_exact_marginal_of_the_reverse_step(process, s):
    t, s = double(0.6), process.schedule.inverse(double(1.0)) if s == 0 else double(s)
    states, prediction, reachable = everywhere(process, LAW, t)
    noise = some_noise(process, LENGTH)
    kernel = exact.transition(process, s, t, noise)
    forward = exact.product_law(exact.rows_of(kernel, states.tokens))
    joint = exact.noised_law(LAW, process, s, noise)[:, None] * forward
    reverse = (joint / joint.sum(0)).T[reachable]  # rows z_t, columns z_s
    table = reverse.reshape(-1, *[process.num_states] * LENGTH)
    posterior = process.posterior(prediction, s).exp()[reachable]
    for i in range(LENGTH):
        others = [1 + j for j in range(LENGTH) if j != i]
        assert torch.allclose(posterior[:, i], table.sum(others), atol=1e-12)


@pytest.mark.parametrize("levels", [(0.0, 0.3), (0.3, 0.8), (0.3, 1.0), (0.0, 1.0)])
def test_thinning_is_the_posterior(process, levels):
    t, s = process.schedule.inverse(double(list(levels)))
    states, prediction, _ = everywhere(process, LAW, t)
    bound = process.move_bound(states, t, s)[..., None]
    assert (bound >= 0).all()
    assert (bound <= 1).all()
    stays = torch.nn.functional.one_hot(states.tokens, process.num_states)
    active = process.active(states)[..., None]
    mixed = (1 - bound) * stays + bound * process.moved(prediction, s).exp()
    mixed = torch.where(active, mixed, stays.double())
    assert torch.allclose(mixed, process.posterior(prediction, s).exp(), atol=1e-12)


@pytest.mark.parametrize("clean_end", [False, True])
def test_knowing_the_clean_token_gives_the_bridge(process, clean_end):
    t, s = double(0.6), process.schedule.inverse(double(1.0)) if clean_end else double(0.25)
    states, prediction, _ = everywhere(process, LAW, t)
    for x0 in exact.all_states(LAW.shape[0], LENGTH)[::5]:
        clean = x0.expand_as(states.tokens)
        known = torch.nn.functional.one_hot(clean, process.num_states).double().log()
        law = process.posterior(Prediction(process, states, prediction.t, log_loo=known), s).exp()
        possible = chance_of(process, states, clean, t) > 0
        expected = exact.bridge(process, clean, states, s, t)
        assert torch.allclose(law[possible], expected[possible], atol=1e-12)
        model = process.posterior(prediction, s)
        terms = torch.where(expected > 0, expected * (expected.log() - model), 0.0).sum(-1)
        actual = process.bridge_kl(prediction, clean, s)
        assert torch.allclose(actual[possible], terms[possible], atol=1e-12)


def test_bound_integrand(process):
    t = double(0.37)
    states, prediction, _ = everywhere(process, LAW, t)
    ratios = Prediction(process, states, prediction.t, log_ratios=prediction.log_ratios)
    for x0 in exact.all_states(LAW.shape[0], LENGTH)[::5]:
        clean = x0.expand_as(states.tokens)
        possible = chance_of(process, states, clean, t) > 0
        expected = exact.bound_integrand(process, prediction.log_loo.exp(), clean, states, t)
        for made in (prediction, ratios):
            actual = process.nelbo(made, clean)
            assert torch.allclose(actual[possible], expected[possible], rtol=1e-9, atol=1e-11)


def test_bound_is_its_weight_times_a_divergence(process):
    t = double(0.37)
    states, prediction, _ = everywhere(process, LAW, t)
    kernel = exact.channel(process, t, some_noise(process, LENGTH)).expand(LENGTH, -1, -1)
    model = torch.einsum("nlk,lkj->nlj", prediction.log_loo.exp(), kernel)
    for x0 in exact.all_states(LAW.shape[0], LENGTH)[::5]:
        clean = x0.expand_as(states.tokens)
        given = exact.rows_of(kernel, clean)
        kl = torch.where(given > 0, given * (given / model).log(), 0.0).sum(-1)
        at = states.tokens[..., None]
        ratio = (given.gather(-1, at) / model.gather(-1, at)).squeeze(-1)
        expected = process.elbo_weight(states, clean, t) * (kl + ratio - ratio.log() - 1)
        counts = process.active(states) & (given.gather(-1, at).squeeze(-1) > 0)
        actual = process.nelbo(prediction, clean)
        assert torch.allclose(actual[counts], expected[counts], rtol=1e-9, atol=1e-11)


def test_prior_kl(process):
    noise = torch.zeros(1, dtype=torch.int64) if process.noise_conditioned else None
    pure = process.schedule.inverse(double(0.0))
    prior = process.noise_law(pure, noise).reshape(-1)
    prior = prior.where(prior > 1e-12, 0.0)  # at alpha = 0 hybrid noise is all MASK, but for 1e-15
    x0 = prior if isinstance(process, Prior) else torch.eye(process.num_states)[1]
    for alpha in (0.0, 1e-3, 0.5, 1.0):
        t = process.schedule.inverse(double(alpha))
        rows = exact.channel(process, t, noise).reshape(process.num_states, -1)
        rows = rows.where(rows > 1e-12, 0.0)  # what is left of 1 - alpha at alpha = 1
        expected = sum(p * exact.kl(row, prior) for p, row in zip(x0, rows, strict=True) if p > 0)
        assert math.isclose(process.prior_kl(alpha), expected, rel_tol=1e-6, abs_tol=1e-12)
