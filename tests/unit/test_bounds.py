"""What each objective measures and where it is smallest, by enumeration on a small law."""

import pytest
import torch

from dlm import Prediction, UserError
from dlm.lab import Oracle, exact
from dlm.objectives import (
    CrossEntropy,
    DiscreteElbo,
    Elbo,
    MaximalCoupling,
    Reweighted,
    ScoreEntropy,
)
from dlm.samplers import Ancestral
from dlm.weightings import Clip, Dynamic, Sigmoid, Simple
from tests.toys import (
    absorbing,
    correlated_law,
    double,
    everywhere,
    hybrid,
    lifted,
    prior,
    processes,
    some_noise,
    uniform,
)

LAW = correlated_law()
CLEAN = exact.all_states(LAW.shape[0], LAW.ndim)
MEAN = LAW.flatten()


@pytest.mark.parametrize("process", processes(), ids=repr)
def test_score_entropy_of_exact_ratios_integrates_to_minus_log_p(process):
    nats = exact.time_integral(LAW, Oracle(LAW, process), ScoreEntropy().rows)
    assert torch.allclose(nats, -MEAN.log(), atol=1e-6)


@pytest.mark.parametrize("process", [absorbing(), lifted()], ids=repr)
def test_maximal_coupling_is_tight_where_noise_shows_itself(process):
    nats = exact.time_integral(LAW, Oracle(LAW, process), MaximalCoupling().rows)
    assert torch.allclose(nats, -MEAN.log(), atol=1e-6)


@pytest.mark.parametrize(("process", "gap"), [(uniform(), 0.822), (prior(), 0.759)], ids=repr)
def test_maximal_coupling_is_loose_for_other_noise(process, gap):
    """A valid bound for every text, but not tight at the exact posterior."""
    nats = exact.time_integral(LAW, Oracle(LAW, process), MaximalCoupling().rows)
    assert (nats > -MEAN.log()).all()
    assert abs((MEAN * nats).sum() - exact.entropy(LAW) - gap) < 1e-3


def test_the_gap_of_maximal_coupling_on_a_single_token():
    """About a third of a nat for one token of four symbols: no step count removes it."""
    law = double([0.5, 0.25, 0.15, 0.1])
    nats = exact.time_integral(law, Oracle(law, uniform(symbols=4)), MaximalCoupling().rows)
    assert 0.2 < (law * nats).sum() - exact.entropy(law) < 0.45


@pytest.mark.parametrize("process", [hybrid()], ids=repr)
def test_maximal_coupling_is_refused_where_the_law_of_the_noise_changes(process):
    with pytest.raises(UserError, match="constant law, Hybrid noise changes"):
        MaximalCoupling().require(process)


@pytest.mark.parametrize("process", processes(), ids=repr)
def test_the_discrete_bound_is_entropy_plus_what_the_sampler_loses(process):
    steps, per_step = 3, 2
    objective, oracle = DiscreteElbo(steps), Oracle(LAW, process)
    draws = (torch.arange(steps * per_step, dtype=torch.float64) + 0.3) / (steps * per_step)
    total = double(0.0)
    noises = exact.every_noise(process, LAW.ndim)
    for noise in noises:
        states = exact.with_noise(exact.all_states(process.num_states, LAW.ndim), noise)
        for t in objective.snap(draws):
            prediction = oracle.predict(oracle.hidden(states, t[None]), states, t)
            kernel = exact.channel(process, t, noise)
            chance = exact.product_law(exact.rows_of(kernel, CLEAN))
            for n, x0 in enumerate(CLEAN):
                nats = objective.rows(prediction, x0.expand_as(states.tokens)).sum(-1)
                total += MEAN[n] * torch.where(chance[n] > 0, chance[n] * nats, 0.0).sum()
    total = total / len(draws) / len(noises)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    path = exact.path_kl(LAW, oracle, Ancestral(), times)
    assert torch.allclose(total - exact.entropy(LAW), path, atol=1e-12)


def slope(process, objective, parameterized):
    """Largest gradient, at the exact posterior, of the expected loss over all x0 and z at a t."""
    t = double(0.4)
    states, prediction, _ = everywhere(process, LAW, t)
    leaf = getattr(prediction, parameterized).detach().clone()
    leaf = torch.where(leaf > -torch.inf, leaf, -80.0).requires_grad_()
    given = {"log_ratios": leaf} if parameterized == "log_ratios" else {}
    given = given or {parameterized: leaf.log_softmax(-1)}
    made = Prediction(process, states, prediction.t, **given)
    kernel = exact.channel(process, t, some_noise(process, LAW.ndim))
    chance = exact.product_law(exact.rows_of(kernel, CLEAN))
    total = double(0.0)
    for n, x0 in enumerate(CLEAN):
        rows = objective.rows(made, x0.expand_as(states.tokens))
        rows = torch.where(process.active(states) & (chance[n] > 0)[:, None], rows, 0.0)
        total = total + MEAN[n] * (chance[n, :, None] * rows).sum()
    (grad,) = torch.autograd.grad(total, leaf)
    if parameterized == "log_ratios":  # m(z) / m(z) is 1: no output
        grad = grad.scatter(-1, states.tokens[..., None], 0.0)
    return grad[process.active(states)].abs().max().item()


KEEP = [Elbo(), DiscreteElbo(5), Reweighted(Simple()), Reweighted(Sigmoid(1.0))]


@pytest.mark.parametrize("process", processes(), ids=repr)
@pytest.mark.parametrize("objective", KEEP, ids=repr)
@pytest.mark.parametrize("parameterized", ["log_loo", "log_denoiser"])
def test_these_are_smallest_at_the_exact_posterior(process, objective, parameterized):
    assert slope(process, objective, parameterized) < 1e-9


@pytest.mark.parametrize("process", processes(), ids=repr)
@pytest.mark.parametrize("objective", [Elbo(), ScoreEntropy()], ids=repr)
def test_scores_are_smallest_at_the_exact_ratios(process, objective):
    assert slope(process, objective, "log_ratios") < 1e-9


@pytest.mark.parametrize("process", processes(), ids=repr)
@pytest.mark.parametrize("objective", [CrossEntropy()], ids=repr)
def test_cross_entropy_and_the_coupled_bound_are_smallest_at_the_denoiser(process, objective):
    assert slope(process, objective, "log_denoiser") < 1e-9
    assert slope(process, objective, "log_loo") < 1e-9
    if process.coupled:
        assert slope(process, MaximalCoupling(), "log_denoiser") < 1e-9


@pytest.mark.parametrize("weighting", [Clip(1.5), Dynamic(2.0)], ids=repr)
def test_weights_that_look_at_x0_keep_the_minimiser_of_masks_only(weighting):
    objective = Reweighted(weighting)
    assert slope(absorbing(), objective, "log_loo") < 1e-9
    assert slope(hybrid(), objective, "log_loo") > 1e-3


def test_weights_have_their_values():
    process, t = hybrid(fraction=0.5), double([[0.3]])
    states, prediction, _ = everywhere(process, LAW, t.squeeze())
    x0 = CLEAN[5].expand_as(states.tokens)
    nelbo = Elbo().rows(prediction, x0)
    assert torch.allclose(Reweighted(Clip(1e12)).rows(prediction, x0), nelbo)
    weight = process.elbo_weight(states, x0, t)
    clipped = Reweighted(Clip(1.0)).rows(prediction, x0)
    assert torch.allclose(clipped, nelbo * (1 / weight).clamp(max=1.0))
    simple = Reweighted(Simple()).rows(prediction, x0)
    assert torch.allclose(simple, nelbo * 0.3)  # linear: -alpha' = 1, 1 - alpha = t
    dynamic = Reweighted(Dynamic(1e12)).rows(prediction, x0)
    clean = 2 * 0.5 / 0.5 * (0.3 / 0.7) ** 0.5 / 3
    wanted = torch.where(states.tokens == process.mask_id, 2.0, 1.0)
    wanted = torch.where(states.tokens == x0, clean, wanted)
    assert torch.allclose(dynamic, nelbo * wanted / weight)


def test_simple_weights_are_the_cross_entropy_of_masked_tokens():
    process = absorbing()
    states, prediction, _ = everywhere(process, LAW, double(0.3))
    x0 = CLEAN[7].expand_as(states.tokens)
    masked = process.active(states)
    simple = Reweighted(Simple()).rows(prediction, x0)[masked]
    assert torch.allclose(simple, CrossEntropy().rows(prediction, x0)[masked])


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="steps must be at least 1"):
        DiscreteElbo(0)
    with pytest.raises(UserError, match="max_weight must be positive"):
        Clip(0.0)
    with pytest.raises(UserError, match="noise with MASK, not for Uniform"):
        Reweighted(Dynamic()).require(uniform())
