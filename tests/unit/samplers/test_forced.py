"""The loss of a plan on a text: the chain rule, the curve, and independence of the batch."""

import pytest
import torch

from dlm import UserError
from dlm.denoiser import Context
from dlm.lab import Oracle
from dlm.lab.laws import Lazy, MarkovChain, Table
from dlm.processes import State
from dlm.random import Key
from dlm.samplers import Balanced, Cosine, Equaliser, Even, FirstHitting, Minimax, forced
from dlm.samplers.forced import hidden_nats, plan_nats
from tests.toys import absorbing, correlated_law, lifted, uniform

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


class Watched:
    """An oracle that keeps what it was asked."""

    def __init__(self, oracle):
        self.oracle, self.asked = oracle, []
        self.process, self.time_conditioning = oracle.process, oracle.time_conditioning
        self.passes, self.predict = oracle.passes, oracle.predict

    def hidden(self, state, t, context=None):
        self.asked.append((state, t, context))
        return self.oracle.hidden(state, t, context)


def test_what_the_network_is_told():
    """The share that is open, the context, and noise that stays and knows nothing of the text."""
    tokens, oracle, key = drawn(LAW, 1000, lifted(symbols=3))
    watched, context = Watched(oracle), Context(condition=torch.ones(1000).long())
    plan_nats(watched, tokens, Even(), 2, key=key, context=context)
    (first, before, _), (second, after, _) = watched.asked
    schedule = oracle.process.schedule
    assert schedule.alpha(before).tolist() == pytest.approx([0.0] * 1000, abs=1e-9)
    assert schedule.alpha(after).tolist() == pytest.approx([0.5] * 1000, abs=1e-9)
    assert all(known is context for *_, known in watched.asked)
    assert torch.equal(first.tokens, first.noise)
    hidden = second.tokens == second.noise
    assert hidden.sum(-1).tolist() == [2] * 1000
    assert torch.equal(first.noise[hidden], second.noise[hidden])
    assert torch.equal(second.tokens[~hidden], tokens[~hidden])
    assert (first.noise == tokens).double().mean().item() == pytest.approx(1 / 3, abs=0.03)
    assert first.noise.double().mean().item() == pytest.approx(1, abs=0.05)


def test_hidden_positions_show_nothing_whatever_they_showed():
    tokens, oracle, _ = drawn(LAW, 5)
    hidden = torch.tensor([[1, 0, 1, 1]] * 5, dtype=torch.bool)
    level = torch.full((5,), 0.25)
    blank = oracle.process.prior((5, 4), key=Key(0, torch.arange(5)))
    one, two = (
        hidden_nats(oracle, tokens, start, hidden, hidden, level)
        for start in (blank, State(tokens))
    )
    torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: type(p).__name__)
def test_no_sequences_and_one_position(plan):
    tokens, oracle, key = drawn(LAW, 3)
    assert plan_nats(oracle, tokens[:0], plan, 2, key=key[:0]).shape == (0,)
    law = MarkovChain(1, 3, Lazy(0.5))
    tokens, oracle, key = drawn(law, 3)
    nats = plan_nats(oracle, tokens, plan, 2, key=key)
    torch.testing.assert_close(nats, -law.log_prob(tokens), rtol=0, atol=1e-12)


def test_mistakes_are_sentences():
    tokens, oracle, key = drawn(LAW, 3)
    with pytest.raises(UserError, match="steps must be at least 1, got 0"):
        plan_nats(oracle, tokens, Minimax("both"), 0, key=key)
    even = Oracle(LAW, uniform(symbols=3))
    with pytest.raises(UserError, match="opens hidden positions, and Uniform noise hides none"):
        plan_nats(even, tokens, Even(), 2, key=key)
