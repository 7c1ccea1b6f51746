"""Which positions an informed corrector chooses, by hand and by the law of its draws."""

import math
from itertools import permutations

import pytest
import torch

from dlm.processes import State
from dlm.random import Key
from dlm.samplers import Gibbs

# The site laws of the positions 0, 1 and 3; the one in the middle is given.
LAW = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.15, 0.75], [0.6, 0.35, 0.05]])
TOKENS = torch.tensor([0, 1, 2, 2])
FREE = torch.tensor([True, True, False, True])
SCORES = {
    "lowest_probability": [-math.log(0.5), -math.log(0.15), -math.log(0.05)],
    "lowest_confidence": [-math.log(0.5), -math.log(0.75), -math.log(0.6)],
    "lowest_margin": [math.log(0.3 / 0.5), math.log(0.75 / 0.15), math.log(0.6 / 0.05)],
}


def chosen(corrector: Gibbs, rows: int) -> torch.Tensor:
    """The choices of so many sequences in the same state, bool (rows, 4)."""
    u = Key(0, torch.arange(rows)).uniform(len(TOKENS))
    state, free = State(TOKENS.expand(rows, -1), None), FREE.expand(rows, -1)
    return corrector.choose(LAW.log().repeat(rows, 1), state, free, u)


@pytest.mark.parametrize("selection", SCORES)
def test_the_largest_scores_are_chosen(selection):
    corrector = Gibbs(positions=1, selection=selection)
    best = [0, 1, 3][max(range(3), key=SCORES[selection].__getitem__)]
    assert chosen(corrector, 3).tolist() == [[place == best for place in range(4)]] * 3


@pytest.mark.parametrize("selection", SCORES)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_draws_by_exp_of_score_over_temperature(selection, temperature):
    """Two without replacement: every order of the first two, enumerated."""
    rows = 20_000
    weights = [math.exp(score / temperature) for score in SCORES[selection]]
    law = dict.fromkeys([(0, 1), (0, 3), (1, 3)], 0.0)
    for first, second in permutations(range(3), 2):
        left = sum(weights) - weights[first]
        one, two = sorted([0, 1, 3][place] for place in (first, second))
        law[one, two] += weights[first] / sum(weights) * weights[second] / left
    found = chosen(Gibbs(positions=2, selection=selection, temperature=temperature), rows)
    for (one, two), chance in law.items():
        seen = (found[:, one] & found[:, two]).double().mean().item()
        assert seen == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / rows))
