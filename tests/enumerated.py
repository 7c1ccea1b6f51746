"""What revealing positions at random loses, by brute force over subsets, orders and outcomes."""

from itertools import combinations

import torch
from torch import Tensor

from dlm.samplers import Equaliser, InformationCurve, Plan
from dlm.samplers.equaliser import first_size, shares
from dlm.samplers.plans import ListedPlan


def random_law(length: int, symbols: int = 2, seed: int = 0) -> Tensor:
    """A random table far from a product."""
    generator = torch.Generator().manual_seed(seed)
    law = torch.rand([symbols] * length, generator=generator, dtype=torch.float64) ** 4 + 1e-6
    return law / law.sum()


def marginal(law: Tensor, kept: tuple[int, ...]) -> Tensor:
    """Of some positions, the summed axes kept with length 1."""
    rest = [i for i in range(law.ndim) if i not in kept]
    return law.sum(rest, keepdim=True) if rest else law


def subset_curve(law: Tensor) -> InformationCurve:
    """Z from its definition: the average of I(X_i; X_S) over all i and all S without i."""

    def entropy(kept: tuple[int, ...]) -> float:
        return torch.special.entr(marginal(law, kept)).sum().item()

    values = []
    for j in range(1, law.ndim + 1):
        informations = [
            entropy((i,)) + entropy(given) - entropy((*given, i))
            for i in range(law.ndim)
            for given in combinations([k for k in range(law.ndim) if k != i], j - 1)
        ]
        values.append(sum(informations) / len(informations))
    return InformationCurve((0.0, *values[1:]))


def average_kl(law: Tensor, sizes: tuple[int, ...]) -> float:
    """KL(law || what comes out given the order), averaged over all sets of each step."""

    def below(known: tuple[int, ...], log_q: Tensor, left: tuple[int, ...]) -> float:
        if not left:
            return (law * (law.log() - log_q)).sum().item()
        rest = [i for i in range(law.ndim) if i not in known]
        sets = list(combinations(rest, left[0]))
        total = 0.0
        for chosen in sets:
            drawn = log_q
            for i in chosen:
                drawn = drawn + (marginal(law, (*known, i)) / marginal(law, known)).log()
            total += below((*known, *chosen), drawn, left[1:])
        return total / len(sets)

    return below((), torch.zeros_like(law), sizes)


def outcomes(plan: Plan, length: int, steps: int) -> list[tuple[float, tuple[int, ...]]]:
    """The law of the sizes, also of the plan that draws them one after the other."""
    if isinstance(plan, ListedPlan):
        chance, sizes = plan.table(length, steps, length)
        return list(zip(chance.tolist(), map(tuple, sizes.tolist()), strict=True))
    assert isinstance(plan, Equaliser)
    share = shares(length, steps)

    def draw(left: int, k: int) -> list[tuple[float, tuple[int, ...]]]:
        if k == 1:
            return [(1.0, (left,))]
        if left <= k:
            return [(1.0, (*[1] * left, *[0] * (k - left)))]
        law = first_size(share[k - 2], torch.tensor(left))
        law = (law / law.sum()).tolist()
        return [
            (law[m - 1] * chance, (m, *rest))
            for m in range(1, left)
            if law[m - 1] > 0
            for chance, rest in draw(left - m, k - 1)
        ]

    return draw(length, steps)
