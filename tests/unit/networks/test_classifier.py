"""The classifier of noisy text: what it sees, its vectors, its gradients."""

import pytest
import torch

from dlm.errors import UserError
from dlm.networks import TextClassifier

K, L, C = 7, 6, 3


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    made = TextClassifier(K, C, L, width=16, depth=1, heads=2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def test_log_probabilities_of_each_row(classifier):
    tokens, level = torch.randint(K, (4, L)), torch.linspace(-3, 3, 4).double()
    together = classifier(classifier.table[tokens], level)
    assert together.shape == (4, C)
    torch.testing.assert_close(together.exp().sum(-1), torch.ones(4))
    alone = classifier(classifier.table[tokens[2:3]], level[2:3])
    torch.testing.assert_close(alone[0], together[2], rtol=1e-4, atol=1e-5)


def test_it_sees_every_position_and_the_level(classifier):
    tokens, level = torch.zeros(1, L, dtype=torch.int64), torch.zeros(1).double()
    base = classifier(classifier.table[tokens], level)
    assert (classifier(classifier.table[tokens], level + 2) - base).abs().max() > 1e-4
    for i in range(L):
        changed = tokens.clone()
        changed[0, i] = 3
        assert (classifier(classifier.table[changed], level) - base).abs().max() > 1e-4


def test_vectors_have_one_length_and_get_gradients(classifier):
    rms = classifier.table.square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones(K), rtol=1e-3, atol=1e-3)
    tokens = torch.arange(K).remainder(K)[:L][None]
    classifier(classifier.table[tokens], torch.zeros(1))[0, 0].backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_one_class_is_refused():
    with pytest.raises(UserError, match="num_classes must be at least 2, got 1"):
        TextClassifier(K, 1, L)
