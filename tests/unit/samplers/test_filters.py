"""Filters keep a normalised law and never drop the most likely token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dlm.samplers import MinP, Temperature, TopK, TopP

FILTERS = [Temperature(0.5), Temperature(2.0), TopK(2), TopK(100), TopP(0.3), TopP(1.0), MinP(0.2)]


@pytest.mark.parametrize("keep", FILTERS, ids=repr)
@given(logits=arrays("float32", 6, elements=st.floats(-30, 30, width=32)), drop=st.booleans())
def test_normalised_and_the_mode_stays(keep, logits, drop):
    logits = torch.from_numpy(logits)
    if drop:
        logits = logits.clone()
        logits[3] = -torch.inf
    log_probs = logits.log_softmax(-1)
    filtered = keep(log_probs)
    assert torch.allclose(filtered.exp().sum(), torch.tensor(1.0), atol=1e-5)
    assert filtered[log_probs == log_probs.max()].max() > -torch.inf  # one of them, in a tie
    assert (filtered[log_probs == -torch.inf] == -torch.inf).all()


def test_what_is_kept():
    law = torch.tensor([0.1, 0.5, 0.25, 0.15]).log()
    kept = lambda f: (f(law) > -torch.inf).tolist()  # noqa: E731
    assert kept(TopK(2)) == [False, True, True, False]
    assert kept(TopP(0.5)) == [False, True, False, False]
    assert kept(TopP(0.51)) == [False, True, True, False]  # the token that crosses p is in
    assert kept(MinP(0.3)) == [False, True, True, True]
    assert kept(MinP(0.31)) == [False, True, True, False]


def test_filtered_laws_keep_their_proportions():
    law = torch.tensor([0.1, 0.5, 0.25, 0.15])
    assert torch.allclose(TopK(2)(law.log()).exp(), torch.tensor([0, 2 / 3, 1 / 3, 0]), atol=1e-6)
    assert torch.allclose(Temperature(0.5)(law.log()).exp(), law**2 / (law**2).sum(), atol=1e-6)


def test_ties_do_not_let_more_than_k_through():
    assert (TopK(2)(torch.zeros(5)) > -torch.inf).sum() == 2
