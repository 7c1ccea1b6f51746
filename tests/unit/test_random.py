"""Keys are pure functions; categorical draws follow their law into the tail."""

import math

import pytest
import torch

from dlm.random import Key, sample_categorical


def test_uniforms_do_not_depend_on_the_batch():
    whole = Key(7, torch.arange(10)).fold("noise", 3).uniform(5)
    part = Key(7, torch.tensor([8, 2])).fold("noise", 3).uniform(5)
    assert torch.equal(part, whole[[8, 2]])
    assert torch.equal(
        Key(7, torch.arange(10)).fold("noise", 3)[torch.tensor([4])].uniform(5), whole[[4]]
    )


def test_a_longer_draw_begins_with_the_shorter_one():
    key = Key(7, torch.arange(4))
    assert torch.equal(key.uniform(9)[:, :5], key.uniform(5))


@pytest.mark.parametrize(
    "other",
    [
        Key(1, torch.arange(6)),
        Key(0, torch.arange(6, 12)),
        Key(0, torch.arange(6)).fold(0),
        Key(0, torch.arange(6)).fold("a"),
        Key(-1, torch.arange(6)),
    ],
)
def test_seed_row_and_fold_each_change_every_number(other):
    key = Key(0, torch.arange(6))
    assert (key.uniform(50) != other.uniform(50)).all()


def test_folding_is_ordered_and_nested():
    key = Key(0, torch.arange(2))
    assert not torch.equal(key.fold(1, 2).uniform(3), key.fold(2, 1).uniform(3))
    assert torch.equal(key.fold(1, 2).uniform(3), key.fold(1).fold(2).uniform(3))


def test_uniforms_are_uniform_and_uncorrelated():
    u = Key(3, torch.arange(1000)).uniform(1000)
    assert u.dtype == torch.float64
    assert u.min() >= 0
    assert u.max() < 1
    bins = torch.histc(u, 100, 0, 1)
    chi2 = ((bins - 1e4) ** 2 / 1e4).sum()
    assert chi2 < 99 + 5 * math.sqrt(2 * 99)
    for a, b in [(u[:, :-1], u[:, 1:]), (u[:-1], u[1:])]:
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation) < 5e-3


def test_draw_equals_inverse_transform_in_float64_at_a_large_vocabulary():
    generator = torch.Generator().manual_seed(0)
    log_probs = 4 * torch.randn(200, 50_258, generator=generator)
    u = Key(0, torch.arange(200)).uniform()
    weights = (log_probs - log_probs.amax(-1, keepdim=True)).exp().double()
    cumulative = weights.cumsum(-1)
    expected = (cumulative <= u[:, None] * cumulative[:, -1:]).sum(-1)
    assert torch.equal(sample_categorical(log_probs, u), expected)


def test_tail_of_1e9_is_drawn_as_often_as_it_should():
    """In float32: a token of mass 1e-9 owns exactly 1e-9 of the uniforms."""
    log_probs = torch.log(torch.tensor([[1 - 1e-9, 1e-9]], dtype=torch.float64)).float()
    edge = 1 - 1e-9
    u = torch.tensor([edge - 1e-10, edge + 1e-10], dtype=torch.float64)
    assert sample_categorical(log_probs.expand(2, 2), u).tolist() == [0, 1]


@pytest.mark.parametrize("size", [2, 3, 256, 257, 1000])
def test_entries_without_mass_are_never_drawn(size):
    log_probs = torch.full((3, size), -torch.inf)
    log_probs[:, size // 2] = -50.0
    u = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert sample_categorical(log_probs, u).tolist() == [size // 2] * 3


def test_frequencies_match_the_law():
    law = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = sample_categorical(
        law.log().expand(100_000, 4), Key(5, torch.arange(100_000)).uniform()
    )
    counts = torch.bincount(draws, minlength=4) / 100_000
    assert (counts - law).abs().max() < 5e-3


def reference_uniform(seed: int, path: list[int], row: int, index: int) -> float:
    """SplitMix64 in plain integers, from its published definition."""
    gamma, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def mix(word: int) -> int:
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
        return word ^ (word >> 31)

    folded = 0
    for item in path:
        folded = mix(((folded + gamma) & mask) ^ mix((item + gamma) & mask))
    base = mix((mix((seed + gamma) & mask) + folded) & mask)
    stream = mix((mix(row * gamma & mask) + base) & mask)
    return (mix((stream + (index + 1) * gamma) & mask) >> 11) / 2**53


@pytest.mark.parametrize("seed", [0, 1, 2**62, -5])
@pytest.mark.parametrize("path", [[], [3], [2**40 + 1, 0]])
def test_numbers_never_change(seed, path):
    """Resumed runs and published samples rely on these very numbers, on every device."""
    rows = torch.tensor([0, 1, 12_345_678_901])
    drawn = Key(seed, rows).fold(*path).uniform(4)
    expected = [[reference_uniform(seed, path, int(r), i) for i in range(4)] for r in rows]
    assert drawn.tolist() == expected
    assert Key(0, torch.tensor([0])).fold("train").uniform().item() == 0.7293187389665609


def test_tails_are_drawn_as_often_as_they_should_be():
    """Float32 logits: the share of the uniforms that give a token is its mass, down to 1e-9."""
    size = 3000
    generator = torch.Generator().manual_seed(0)
    logits = -torch.rand(size, generator=generator) * 17  # masses from 6e-3 to 2e-10
    log_probs = logits.log_softmax(-1)
    exact = log_probs.double().exp()
    exact = exact / exact.sum()

    def edge(token):
        """The least uniform that gives this token or a later one, by bisection."""
        low = torch.zeros(len(token), dtype=torch.float64)
        high = torch.ones_like(low)
        for _ in range(54):
            middle = (low + high) / 2
            later = sample_categorical(log_probs.expand(len(token), -1), middle) >= token
            low, high = torch.where(later, low, middle), torch.where(later, middle, high)
        return high

    tokens = exact.argsort()[torch.tensor([0, 1, 50, 1500, 2998, 2999])]
    share = edge(tokens + 1) - edge(tokens)
    assert exact[tokens[0]] < 1e-9
    assert torch.allclose(share, exact[tokens], rtol=2e-5, atol=0)


def test_a_rare_token_is_hit_by_the_uniforms_that_are_its_own():
    """Mass 1e-9 beside one of 1: 24-bit noise could not see it, 53 bits can."""
    log_probs = torch.tensor([[0.0, -20.723265836946414]]).log_softmax(-1)  # 1e-9
    just_below, just_above = 1 - 1.5e-9, 1 - 0.5e-9
    u = torch.tensor([just_below, just_above], dtype=torch.float64)
    assert sample_categorical(log_probs.expand(2, -1), u).tolist() == [0, 1]
