"""The loss of a plan on a text: the chain rule, the curve, and independence of the batch."""

import pytest
import torch

from dlm.lab import Oracle
from dlm.lab.laws import Lazy, MarkovChain, Table
from dlm.random import Key
from dlm.samplers import Balanced, Cosine, Equaliser, Even, FirstHitting, Minimax, forced
from dlm.samplers.forced import hidden_nats, plan_nats
from tests.toys import absorbing, correlated_law, lifted

LAW = Table(4, 3, correlated_law(3, 4))
PLANS = [Even(), Cosine(), Balanced(), Minimax("both"), Equaliser(), FirstHitting()]


def drawn(law, count, process=None):
    """Sequences of a law, its oracle and a key."""
    key = Key(3, torch.arange(count))
    process = process or absorbing(symbols=law.symbols)
    return law.sample(count, key=key), Oracle(law, process), key.fold("forced")


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("steps", [4, 7])
def test_one_at_a_time_pays_the_probability_of_the_text_whatever_the_order(plan, steps):
    tokens, oracle, key = drawn(LAW, 40)
    nats = plan_nats(oracle, tokens, plan, steps, key=key)
    torch.testing.assert_close(nats, -LAW.log_prob(tokens), rtol=0, atol=1e-11)


def test_one_call_pays_every_token_by_itself():
    tokens, oracle, key = drawn(LAW, 40)
    nats = plan_nats(oracle, tokens, Even(), 1, key=key)
    rows = LAW.marginals().log()[torch.arange(4), tokens]
    torch.testing.assert_close(nats, -rows.sum(-1), rtol=0, atol=1e-11)


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("steps", [2, 3])
def test_the_mean_beyond_the_entropy_is_what_the_curve_says(plan, steps):
    tokens, oracle, key = drawn(LAW, 6000)
    lost = plan_nats(oracle, tokens, plan, steps, key=key) + LAW.log_prob(tokens)
    stderr = (lost.std() / len(lost) ** 0.5).item()
    known = LAW.curve().cost(plan.waits(4, steps, 4))
    assert known > 10 * stderr
    assert lost.mean().item() == pytest.approx(known, abs=4.5 * stderr)


def test_a_sequence_pays_the_same_alone_and_in_a_batch():
    law = MarkovChain(12, 3, Lazy(0.7))
    tokens, oracle, key = drawn(law, 6)
    for plan in PLANS:
        together = plan_nats(oracle, tokens, plan, 5, key=key)
        for row in range(6):
            at = slice(row, row + 1)
            alone = plan_nats(oracle, tokens[at], plan, 5, key=key[at])
            torch.testing.assert_close(alone, together[at], rtol=0, atol=1e-12)


def test_only_what_is_asked_is_paid_in_parts_of_any_size(monkeypatch):
    tokens, oracle, key = drawn(LAW, 5)
    hidden = torch.tensor([[1, 0, 1, 1]] * 5, dtype=torch.bool)
    asked = torch.tensor([[1, 0, 0, 1]] * 5, dtype=torch.bool)
    start = oracle.process.prior((5, 4), key=key)
    arguments = (oracle, tokens, start, hidden, asked, torch.full((5,), 0.25))
    nats = hidden_nats(*arguments)
    assert (nats[~asked] == 0).all()
    table = LAW.table()
    for row, (a, b, _, d) in enumerate(tokens.tolist()):
        given = table[:, b].sum(1) / table[:, b].sum()  # of the first and the last, given b
        assert nats[row, 0].item() == pytest.approx(-given.sum(1)[a].log().item(), abs=1e-12)
        assert nats[row, 3].item() == pytest.approx(-given.sum(0)[d].log().item(), abs=1e-12)
    monkeypatch.setattr(forced, "HEAD_ENTRIES", 4)
    torch.testing.assert_close(hidden_nats(*arguments), nats, rtol=0, atol=0)


def test_noise_that_hides_behind_tokens_can_be_forced_too():
    tokens, oracle, key = drawn(LAW, 2000, lifted(symbols=3))
    nats = plan_nats(oracle, tokens, Even(), 1, key=key)
    rows = LAW.marginals().log()[torch.arange(4), tokens]
    torch.testing.assert_close(nats, -rows.sum(-1), rtol=0, atol=1e-10)
    more = plan_nats(oracle, tokens, Even(), 4, key=key)
    assert more.mean() < nats.mean()
