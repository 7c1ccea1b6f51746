"""Constraints, penalties of repetition and filters, put together."""

import pytest
import torch

from dlm import Prediction, State, UserError
from dlm.lab import Oracle
from dlm.random import Key
from dlm.samplers import (
    Ancestral,
    Auto,
    Even,
    EvenGrid,
    Gibbs,
    GridSampler,
    LeftToRight,
    Random,
    RevealSampler,
    Typical,
)
from dlm.samplers.bending import Bending
from tests.toys import absorbing, correlated_law, double, processes, uniform

SYMBOLS = 6
LAW = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.07, 0.03], dtype=torch.float64).log()


def bent(tokens, chosen, known, allowed=None, **settings):
    """Probabilities (N, K) at the chosen positions of one row, LAW before."""
    process = uniform(symbols=SYMBOLS)
    state = State(torch.tensor([tokens]))
    chosen, known = torch.tensor([chosen]).bool(), torch.tensor([known]).bool()
    count = int(chosen.sum())
    log_loo = LAW.expand(count, -1)
    t = double(0.5).expand(count)
    prediction = Prediction(process, state.at(chosen), t, log_loo=log_loo)
    return Bending(**settings)(prediction, state, chosen, known, allowed).log_loo.exp()


def test_nothing_set_changes_nothing():
    assert torch.equal(bent([0, 1, 2], [0, 1, 0], [1, 1, 1]), LAW.exp()[None])


def test_allowed_tokens_keep_their_proportions():
    allowed = torch.tensor([False, True, False, True, False, False]).expand(1, 3, -1)
    found = bent([0, 0, 0], [0, 1, 0], [0, 0, 0], allowed)
    assert torch.allclose(found[0], torch.tensor([0, 0.625, 0, 0.375, 0, 0]).double())


def test_allowed_tokens_that_the_model_excludes_are_even():
    allowed = torch.zeros(1, 1, SYMBOLS, dtype=torch.bool)
    allowed[..., 4:] = True
    state = State(torch.tensor([[0]]))
    log_loo = LAW.clone()
    log_loo[4:] = -torch.inf
    prediction = Prediction(uniform(symbols=SYMBOLS), state, double(0.5), log_loo=log_loo[None])
    chosen = torch.ones(1, 1, dtype=torch.bool)
    found = Bending()(prediction, state, chosen, ~chosen, allowed).log_loo.exp()
    assert torch.allclose(found, torch.tensor([[0, 0, 0, 0, 0.5, 0.5]]).double())


def test_a_penalty_falls_on_known_tokens_elsewhere_alone():
    found = bent([1, 3, 1, 2], [0, 1, 0, 0], [1, 1, 0, 0], repetition_penalty=2.0)[0]
    expected = LAW.clone()
    expected[1] *= 2.0  # token 1 stands at the known place 0; 3 is its own, 2 is not known
    assert torch.allclose(found, expected.log_softmax(-1).exp())


@pytest.mark.parametrize(
    ("tokens", "place", "n", "dropped"),
    [
        ([1, 2, 3, 1, 0, 5], 4, 2, {2}),  # (1, 2) stood before, after the same left neighbour
        ([0, 5, 1, 2, 4, 2], 0, 2, set()),  # (., 5) stands once, here
        ([0, 2, 1, 2, 4, 4], 0, 2, {1}),  # (1, 2): the gap is at its beginning
        ([1, 2, 3, 1, 0, 3], 4, 3, {2}),  # (1, 2, 3): the gap is in its middle
        ([1, 2, 3, 1, 0, 4], 4, 3, set()),
        ([1, 2, 1, 0, 4, 4], 3, 1, {1, 2, 4}),  # no token twice
    ],
)
def test_no_ngram_twice(tokens, place, n, dropped):
    chosen = [int(i == place) for i in range(6)]
    known = [1 - c for c in chosen]
    found = bent(tokens, chosen, known, no_repeat_ngram=n)[0]
    assert {v for v in range(SYMBOLS) if found[v] == 0} == dropped
    assert found.sum() == pytest.approx(1.0)


def test_unknown_tokens_make_no_ngrams():
    assert (
        bent([1, 2, 3, 1, 0, 5], [0, 0, 0, 0, 1, 0], [1, 0, 1, 1, 0, 1], no_repeat_ngram=2) > 0
    ).all()


def test_where_every_token_would_repeat_the_law_stays():
    found = bent([0, 1, 2, 3, 4, 5, 0], [0] * 6 + [1], [1] * 6 + [0], no_repeat_ngram=1)
    assert torch.allclose(found[0], LAW.exp())


def test_typical_leaves_out_what_is_far_too_likely():
    """The nearest to the entropy go first: here the mode is not among them."""
    law = torch.tensor([0.6, 0.2, 0.2]).log()  # entropy 0.95; surprises 0.51 and 1.61
    assert (Typical(0.5)(law) > -torch.inf).tolist() == [True, False, False]
    law = torch.tensor([0.4, *[0.6 / 20] * 20]).log()  # entropy 2.47; surprises 0.92 and 3.51
    kept = Typical(0.5)(law) > -torch.inf
    assert not kept[0]
    assert kept.sum() == 17


def test_filters_reach_reveal_samplers_and_correctors():
    """top_k=1 everywhere: the Gibbs corrector and the last steps are greedy, seeds agree."""
    law, rows = correlated_law(), torch.arange(6)
    for process in processes():
        sampler = GridSampler(Ancestral(), EvenGrid(), steps=6, corrector=Gibbs(), top_k=1)
        free = GridSampler(Ancestral(), EvenGrid(), steps=6, corrector=Gibbs())
        key = Key(0, torch.arange(300))
        greedy = sampler(Oracle(law, process), (300, 3), key=key).tokens
        usual = free(Oracle(law, process), (300, 3), key=key).tokens
        assert len(greedy.unique(dim=0)) < len(usual.unique(dim=0))
    reveal = RevealSampler(Even(), LeftToRight(), steps=None, top_k=1)
    tokens = reveal(Oracle(law, absorbing()), (6, 3), key=Key(0, rows)).tokens
    assert len(tokens.unique(dim=0)) == 1


def test_repetition_settings_reach_the_samplers():
    law = torch.full((4, 4, 4), 1 / 64, dtype=torch.float64)
    for process in (absorbing(symbols=4), uniform(symbols=4)):
        sampler = Auto(steps=24, no_repeat_ngram=1)
        key = Key(0, torch.arange(200))
        tokens = sampler(Oracle(law, process), (200, 3), key=key).tokens
        free = Auto(steps=24)(Oracle(law, process), (200, 3), key=key).tokens
        repeats = lambda x: (x.sort(-1).values.diff() == 0).any(-1).double().mean()  # noqa: E731
        assert repeats(tokens) < 0.5 * repeats(free)
    sampler = RevealSampler(Even(), Random(), steps=None, no_repeat_ngram=1)
    tokens = sampler(Oracle(law, absorbing(symbols=4)), (200, 3), key=key).tokens
    assert repeats(tokens) == 0  # one at a time: nothing is drawn at the same moment


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"repetition_penalty": 0.5}, "repetition_penalty must be at least 1"),
        ({"no_repeat_ngram": 0}, "no_repeat_ngram must be at least 1"),
        ({"typical_p": 0.0}, "typical_p must be in"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_settings_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Bending(**settings)
