"""Which rows lose their class in training: a function of (seed, row), in the share asked for."""

import torch

from dlm.data import Batch
from dlm.training.steps import known


def batch(rows, condition=None):
    tokens = torch.zeros(len(rows), 2, dtype=torch.int64)
    return Batch(tokens, tokens == 0, None, rows, condition)


def conditions(rows, dropout, seed=0):
    return known(batch(rows, rows % 3), dropout, seed).condition


def test_a_share_of_the_rows_loses_its_class():
    rows = torch.arange(20_000)
    found = conditions(rows, 0.1)
    dropped = found < 0
    assert abs(dropped.double().mean() - 0.1) < 0.01
    assert torch.equal(found[~dropped], (rows % 3)[~dropped])
    assert torch.equal(conditions(rows, 0.0), rows % 3)
    assert (conditions(rows, 1.0) == -1).all()


def test_it_is_the_same_in_any_batch_and_differs_by_seed():
    rows = torch.arange(1000)
    whole = conditions(rows, 0.5)
    some = torch.tensor([7, 500, 3])
    assert torch.equal(conditions(rows[some], 0.5), whole[some])
    assert not torch.equal(conditions(rows, 0.5, seed=1), whole)


def test_without_labels_there_is_no_condition():
    assert known(batch(torch.arange(3)), 0.5, 0).condition is None
