"""The probe: 0 where a posterior ignores its own token, and otherwise what enumeration gives."""

import pytest
import torch

from dlm import Denoiser
from dlm.data import Batch
from dlm.denoiser import Context
from dlm.errors import UserError
from dlm.evaluation.likelihood import noised
from dlm.evaluation.sensitivity import (
    NOISE_LEVELS,
    measure_sampled_sensitivity,
    measure_sensitivity,
    probe_refusal,
    state_sensitivity,
)
from dlm.lab import Oracle
from dlm.networks import DiT
from dlm.parameterizations import LeaveOneOut
from dlm.processes import Prediction, Process, Uniform
from dlm.random import Key
from dlm.schedules import Linear
from tests.toys import absorbing, correlated_law, double, hybrid, lifted, prior, uniform

LAW = correlated_law(3, 3)


def text(count: int, length: int = 3, symbols: int = 3) -> Batch:
    rows = torch.arange(count)
    tokens = (Key(2, rows).uniform(length) * symbols).long()
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), None, rows)


@pytest.mark.parametrize("make", [uniform, prior, hybrid, lifted])
def test_an_exact_posterior_never_looks(make):
    found = measure_sensitivity(Oracle(LAW, make()), [text(60)])
    assert (found.total_variation == 0).all()
    assert (found.kl == 0).all()
    assert found.noise.tolist() == list(NOISE_LEVELS)


class Peeking:
    """Says 0.8 for the token that it is shown, 0.1 for each other of three."""

    time_conditioning = False

    def __init__(self, process: Process) -> None:
        self.process: Process = process

    def passes(self, length: int) -> int:
        return 1

    def hidden(self, state, t, context=None):
        return state.tokens[..., None].double()

    def predict(self, hidden, state, t):
        shown = torch.nn.functional.one_hot(hidden[..., 0].long(), self.process.num_states)
        return Prediction(self.process, state, t, log_loo=(0.1 + 0.7 * shown.double()).log())


def test_one_that_looks_is_measured():
    """Even noise of three: with 2/3 the new token is another, total variation 0.7."""
    found = measure_sensitivity(Peeking(uniform()), [text(800)])
    assert found.total_variation.tolist() == pytest.approx([0.7 * 2 / 3] * 12, abs=0.06)
    assert (found.total_variation_stderr < 0.02).all()
    log = 0.7 * torch.log(torch.tensor(8.0)).item()
    assert found.kl.tolist() == pytest.approx([log * 2 / 3] * 12, abs=0.2)


def test_the_new_token_follows_the_noise_and_is_no_mask():
    """Prior noise gives tokens by their weights; hybrid noise evenly among clean tokens."""
    for process in (prior(), hybrid()):
        weights = process.noise_law(double(0.5))[:3]
        weights = weights / weights.sum()
        key = Key(0, torch.arange(4000))
        t = process.schedule.inverse(double(0.9))
        batch = text(4000)
        state = noised(process, batch, t.expand(4000), key)
        count, tv, _ = state_sensitivity(Peeking(process), state, batch.valid, t, 1, key, Context())
        assert count.max() == 1
        moved = (tv > 0.1).double().sum() / count.sum()
        shown = torch.bincount(batch.tokens.flatten(), minlength=3) / batch.tokens.numel()
        shown = 0.9 * shown + 0.1 * weights
        assert moved.item() == pytest.approx(1 - (shown * weights).sum().item(), abs=0.04)


def test_a_network_looks_and_the_batch_changes_nothing():
    torch.manual_seed(0)
    net = DiT(5, 8, 16, 1, 2, time_conditioning=True)
    torch.nn.init.normal_(net.head.weight)
    model = Denoiser(net, Uniform(5, Linear()), LeaveOneOut()).eval()
    batch = text(12, 8, 5)
    parts = [
        Batch(batch.tokens[k : k + 5], batch.valid[k : k + 5], None, batch.rows[k : k + 5])
        for k in range(0, 12, 5)
    ]
    one, two = (measure_sensitivity(model, each) for each in ([batch], parts))
    torch.testing.assert_close(one.sums, two.sums, rtol=1e-4, atol=1e-6)
    assert (one.total_variation > 1e-3).all()


@pytest.mark.parametrize("make", [uniform, prior, hybrid, lifted])
def test_an_exact_posterior_does_not_look_on_the_way_of_samples_either(make):
    found = measure_sampled_sensitivity(Oracle(LAW, make()), 60, 3, steps=6)
    assert (found.total_variation == 0).all()
    assert found.sums[0].min() >= 2


class Zeros:
    """Writes symbol 0 everywhere, and looks at its own token where nearly all others are 0."""

    time_conditioning = False

    def __init__(self) -> None:
        self.process: Process = uniform()

    def passes(self, length: int) -> int:
        return 1

    def hidden(self, state, t, context=None):
        others = (state.tokens != 0).sum(-1, keepdim=True) - (state.tokens != 0).long()
        return torch.stack([state.tokens, others], -1).double()

    def predict(self, hidden, state, t):
        looks = (hidden[..., 1] <= 2)[..., None]
        shown = torch.nn.functional.one_hot(hidden[..., 0].long(), 3).double()
        zero = torch.tensor([0.98, 0.01, 0.01], dtype=torch.float64).expand_as(shown)
        return Prediction(self.process, state, t, log_loo=torch.where(
            looks, 0.1 + 0.7 * shown, zero
        ).log())  # fmt: skip


def test_states_are_those_of_the_sampler_and_not_those_of_the_text():
    model, batch = Zeros(), text(200, 8)
    read = measure_sensitivity(model, [batch])
    drawn = measure_sampled_sensitivity(model, 200, 8, steps=40)
    assert read.total_variation[0] < 0.1  # random tokens: the others are hardly ever 0
    assert drawn.total_variation[0] > 0.15
    assert drawn.total_variation[-1] < 0.1  # near the noise nothing is drawn yet
    again = measure_sampled_sensitivity(model, 200, 8, steps=40, batch_size=7)
    torch.testing.assert_close(drawn.sums, again.sums, rtol=1e-9, atol=1e-12)


def test_padding_is_not_probed():
    batch = text(50)
    valid = torch.zeros_like(batch.valid)
    valid[:20, 1] = True
    found = measure_sensitivity(Peeking(uniform()), [batch._replace(valid=valid)], positions=3)
    assert found.sums[0].tolist() == [20.0] * 12


def test_mistakes_are_sentences():
    assert "shows only MASK" in (probe_refusal(absorbing()) or "")
    assert probe_refusal(lifted()) is None
    with pytest.raises(UserError, match="shows only MASK"):
        measure_sensitivity(Oracle(LAW, absorbing()), [text(4)])
    with pytest.raises(UserError, match="positions must be at least 1"):
        measure_sensitivity(Oracle(LAW, uniform()), [text(4)], positions=0)
    with pytest.raises(UserError, match="it needs two"):
        measure_sensitivity(Oracle(LAW, uniform()), [text(1)])
    with pytest.raises(UserError, match="it needs two"):
        measure_sampled_sensitivity(Oracle(LAW, uniform()), 1, 3)
    with pytest.raises(UserError, match="shows only MASK"):
        measure_sampled_sensitivity(Oracle(LAW, absorbing()), 4, 3)
