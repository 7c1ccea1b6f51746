"""The measured profile: its integral is the bound, on every schedule; what is fitted to it."""

import pytest
import torch
from torch import Tensor

from dlm.data import Batch
from dlm.errors import UserError
from dlm.evaluation.likelihood import evaluate
from dlm.evaluation.profile import Profile, measure_profile
from dlm.lab import exact
from dlm.schedules import Cosine, Linear, Polynomial
from dlm.times import ImportanceSampled, bin_edges
from tests.toys import absorbing, correlated_law, everywhere, uniform
from tests.training.tiny import denoiser, rows

LAW = correlated_law(2, length=2)
MODEL = denoiser()


def exact_profile(process, bins: int = 32, points: int = 12) -> Profile:
    """The profile of the oracle on an enumerated law: nothing is sampled."""
    clean = exact.all_states(2, 2)
    process, edges = process.on(Linear()), bin_edges(bins)
    sums = torch.zeros(6, bins, dtype=torch.float64)
    for b in range(bins):
        for share in (torch.arange(points) + 0.5) / points:
            t = edges[b] + (edges[b + 1] - edges[b]) * share
            states, prediction, _ = everywhere(process, LAW, t)
            chance = exact.product_law(exact.channel(process, t)[clean])
            for p, x0, q in zip(LAW.flatten(), clean, chance, strict=True):
                nats = process.nelbo(prediction, x0.expand_as(states.tokens)).sum(-1)
                nats = torch.where(q > 0, nats, 0.0)
                for row, value in enumerate((1, 2, nats, nats**2, 2 * nats, 4)):
                    sums[row, b] += (p * q * value).sum()
    return Profile(sums)


def integral(profile: Profile, schedule) -> Tensor:
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    return profile.at(schedule, t).mean()


@pytest.mark.parametrize(
    "process", [absorbing(symbols=2), uniform(symbols=2)], ids=["mask", "even"]
)
def test_a_flat_schedule_changes_the_integrand_and_not_the_bound(process):
    """On the toy law with its oracle: the bound is the entropy before and after."""
    profile = exact_profile(process)
    entropy = exact.entropy(LAW).item() / 2
    assert profile.bound().nelbo == pytest.approx(entropy, rel=2e-3)
    flat = profile.flat_schedule()
    assert integral(profile, flat) == pytest.approx(entropy, rel=5e-3)
    assert profile.spread_in_time(flat) < 0.13
    assert profile.spread_in_time(Linear()) > 3 * profile.spread_in_time(flat)
    assert profile.spread_in_time(Polynomial(3.0)) > 0.5
    law = torch.zeros(())
    for t in (torch.arange(40, dtype=torch.float64) + 0.5) / 40:  # the process itself, at even t
        states, prediction, _ = everywhere(process.on(flat), LAW, t)
        chance = exact.product_law(exact.channel(process.on(flat), t)[exact.all_states(2, 2)])
        for p, x0, q in zip(LAW.flatten(), exact.all_states(2, 2), chance, strict=True):
            nats = process.on(flat).nelbo(prediction, x0.expand_as(states.tokens)).sum(-1)
            law = law + (p * torch.where(q > 0, q * nats, 0.0)).sum() / 40
    assert law / 2 == pytest.approx(entropy, rel=0.01)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(2.0)], ids=repr)
@pytest.mark.parametrize("centred", [True, False])
def test_the_density_has_the_least_variance(schedule, centred):
    """No other density does better, and even times do worse, under the schedule it is for."""
    profile = exact_profile(absorbing(symbols=2))
    edges = bin_edges(32)
    density = torch.tensor(profile.density(schedule, centred=centred))
    assert (density * edges.diff()).sum().item() == pytest.approx(1)
    t = edges[:-1, None] + edges.diff()[:, None] * (torch.arange(50) + 0.5) / 50
    noise = schedule.log_one_minus_alpha(t).exp()
    level = torch.bucketize(noise, edges[1:-1], right=True)
    moment = (profile.moment(centred)[level] * schedule.dalpha(t) ** 2).mean(-1)

    def cost(p: Tensor) -> float:
        return (edges.diff() * moment / p).sum().item()

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = density * (1 + 0.3 * torch.rand(32, generator=generator))
        assert cost(density) < 1.001 * cost(other / (other * edges.diff()).sum())
    assert cost(density) < 0.995 * cost(torch.ones(32))
    assert ImportanceSampled(density=tuple(density.tolist())).masses().sum() == pytest.approx(1)


def test_a_measured_profile_integrates_to_the_evaluated_bound():
    """Ragged rows, a network of random weights, on a schedule that does not matter."""
    model = denoiser()
    batches = [rows(range(k, k + 80)) for k in range(0, 160, 80)]
    profile = measure_profile(model.on(Cosine()), batches, bins=8, draws=64)
    bound = evaluate(model, batches, num_bytes=None, num_sequences=160, draws=32)
    measured = profile.bound()
    assert measured.stderr < 0.04
    assert measured.nelbo == pytest.approx(bound.nelbo, abs=4 * measured.stderr)
    assert (profile.sums[0] == 160 * 8).all()  # as many to each bin


def test_the_batch_a_sequence_sits_in_changes_nothing():
    profiles = [
        measure_profile(MODEL, batches, bins=4, draws=4)
        for batches in ([rows(range(30))], [rows([k]) for k in range(30)])
    ]
    torch.testing.assert_close(profiles[0].sums, profiles[1].sums, rtol=1e-5, atol=1e-3)


def test_stderr_is_the_spread_between_repetitions():
    batches = [rows(range(64))]
    profiles = [measure_profile(MODEL, batches, bins=4, draws=4, seed=seed) for seed in range(60)]
    spread = torch.stack([profile.mean for profile in profiles]).std(0)
    stated = torch.stack([profile.stderr for profile in profiles]).mean(0)
    assert (stated[1:] / spread[1:]).log().abs().max() < 0.6


@pytest.mark.parametrize("settings", [{"bins": 3}, {"draws": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError, match="needs 4 bins and a draw"):
        measure_profile(MODEL, [rows(range(8))], **settings)


def test_too_few_draws_are_refused():
    with pytest.raises(UserError, match="8 draws are too few for 8 bins; raise draws"):
        measure_profile(MODEL, [rows(range(8))], bins=8)


def test_a_loss_that_is_not_finite_is_refused():
    model = denoiser()
    torch.nn.init.constant_(model.backbone.head.weight, torch.nan)
    batch = rows(range(64), ragged=False)
    assert isinstance(batch, Batch)
    with pytest.raises(UserError, match="not finite"):
        measure_profile(model, [batch], bins=4)
