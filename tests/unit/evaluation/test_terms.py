"""The bound by what a position shows: the parts sum to the bound, and are those of quadrature."""

import numpy as np
import pytest
import torch

from dlm import Denoiser
from dlm.data import Batch
from dlm.errors import UserError
from dlm.evaluation.likelihood import sequence_nelbo
from dlm.evaluation.terms import measure_terms, shown_by
from dlm.lab import exact
from dlm.networks import DiT
from dlm.parameterizations import LeaveOneOut
from dlm.processes import State
from dlm.random import Key
from dlm.schedules import Geometric, Linear
from tests.toys import absorbing, hybrid, lifted, uniform

MAKES = [absorbing, uniform, hybrid, lifted]


def model(process, seed=0):
    """A network with fixed weights, of two positions."""
    torch.manual_seed(seed)
    net = DiT(
        process.num_states, 2, 16, 1, 2, time_conditioning=process.time_conditioned,
        noise_conditioning=process.noise_conditioned,
    )  # fmt: skip
    torch.nn.init.normal_(net.head.weight, std=0.3)
    return Denoiser(net, process, LeaveOneOut()).eval()


def text(count):
    rows = torch.arange(count)
    tokens = (Key(1, rows).uniform(2) * 3).long()
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), None, rows)


@pytest.mark.parametrize("make", MAKES)
def test_terms_are_the_integrals_over_noise_of_their_positions(make):
    """One text, all of its noisy versions, Gauss-Legendre in t: nothing is sampled."""
    process = make(Linear(), symbols=3)
    denoiser, x0 = model(process), torch.tensor([[0, 2]])
    points, weights = np.polynomial.legendre.leggauss(40)
    known, places = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    noises = exact.every_noise(process, 2)
    for u, w in zip((points + 1) / 2, weights / 2, strict=True):
        t = torch.tensor(u**2, dtype=torch.float64)  # finer near the data
        for noise in noises:
            states = exact.with_noise(exact.all_states(process.num_states, 2), noise)
            times = t.expand(len(states.tokens))
            with torch.no_grad():
                features = denoiser.hidden(states, times)
                said = denoiser.predict(features, states, times[:, None].expand(-1, 2))
                nats = process.nelbo(said, x0.expand_as(states.tokens)).double()
            rows = exact.rows_of(exact.channel(process, t, noise), x0)
            chance = exact.product_law(rows)[0]
            shown = torch.stack(shown_by(process, states, x0.expand_as(states.tokens)))
            dt = 2 * u * w / len(noises)
            inside = torch.where(shown & (chance > 0)[:, None], chance[:, None] * nats, 0.0)
            known += dt * inside.sum((-1, -2)) / 2
            places += dt * (shown * chance[:, None]).sum((-1, -2)) / 2
    batch = Batch(
        x0.expand(3000, -1), torch.ones(3000, 2, dtype=torch.bool), None, torch.arange(3000)
    )
    found = measure_terms(denoiser, [batch], draws=2)
    for term in range(3):
        slack = 4.5 * found.stderr[term].item() + 2e-3
        assert found.nats[term].item() == pytest.approx(known[term].item(), abs=slack)
        assert found.positions[term].item() == pytest.approx(places[term].item(), abs=0.02)
    assert found.share.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("make", MAKES)
def test_terms_sum_to_the_bound(make):
    denoiser, batch = model(make(Linear(), symbols=3)), text(2000)
    bound = sequence_nelbo(denoiser, batch, draws=4, seed=1) / 2
    found = measure_terms(denoiser, [batch], draws=4)
    stderr = bound.std() / len(bound) ** 0.5 + found.stderr.sum()
    total = found.nats.sum().item()
    assert total == pytest.approx(bound.mean().item(), abs=4 * stderr.item())


def test_under_masks_every_nat_is_hidden():
    found = measure_terms(model(absorbing(Linear(), symbols=3)), [text(64)])
    assert found.nats[0] > 0.5
    assert (found.nats[1:] == 0).all()
    assert found.positions[0].item() == pytest.approx(0.5, abs=0.05)


def test_what_a_position_shows():
    x0 = torch.tensor([[0, 1, 2, 2]])
    shown = shown_by(hybrid(symbols=3), State(torch.tensor([[3, 1, 0, 2]])), x0)
    assert [each[0].tolist() for each in shown] == [
        [True, False, False, False],
        [False, False, True, False],
        [False, True, False, True],
    ]
    noise = torch.tensor([[1, 1, 0, 2]])
    hidden, replaced, kept = shown_by(lifted(symbols=3), State(x0, noise), x0)
    assert hidden[0].tolist() == [False, True, False, True]  # those that show their noise
    assert not replaced.any()
    assert kept[0].tolist() == [True, False, True, False]


def test_padding_is_not_counted_and_the_batch_changes_nothing():
    denoiser, batch = model(uniform(Linear(), symbols=3)), text(40)
    valid = batch.valid.clone()
    valid[:30, 1] = False
    batch = batch._replace(valid=valid)
    parts = [
        Batch(batch.tokens[k : k + 7], valid[k : k + 7], None, batch.rows[k : k + 7])
        for k in range(0, 40, 7)
    ]
    one, two = (measure_terms(denoiser, each) for each in ([batch], parts))
    torch.testing.assert_close(one.nats, two.nats, rtol=1e-4, atol=1e-6)
    assert one.positions.sum().item() == pytest.approx(1)


def test_the_prior_term_is_that_of_the_models_schedule():
    def prior(schedule):
        return measure_terms(model(uniform(schedule, symbols=3)), [text(8)]).prior

    assert prior(Linear()) == 0
    schedule = Geometric(1e-3, 2.0)
    alpha = schedule.alpha(torch.tensor(1.0, dtype=torch.float64)).item()
    assert alpha > 0.1
    rows = torch.tensor([alpha + (1 - alpha) / 3, (1 - alpha) / 3, (1 - alpha) / 3])
    assert prior(schedule) == pytest.approx((rows * (rows * 3).log()).sum().item(), rel=1e-5)


def test_mistakes_are_sentences():
    denoiser = model(uniform(Linear(), symbols=3))
    with pytest.raises(UserError, match="draws must be at least 1"):
        measure_terms(denoiser, [text(4)], draws=0)
    with pytest.raises(UserError, match="two sequences with tokens, got 1"):
        measure_terms(denoiser, [text(1)])
