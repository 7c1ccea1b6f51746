"""Random step sizes that are safe for every law: the minimax boundary plan.

Let pi_l be the probability that a step begins at position l, and E R_l as in `dlm.samplers.curve`.
Since TC = sum_l (Z_l - Z_{l-1}) (L - l + 1) and DTC = sum_l (Z_l - Z_{l-1}) (l - 1), a plan with
E R_l <= c w_l loses at most c TC for w_l = L - l + 1, c DTC for w_l = l - 1, and c times both
for their minimum, whatever the law. For given pi every coupling of the beginnings has

    E R_l >= sum_{j >= 1} (1 - pi_l - ... - pi_{l+j-1})_+

and systematic sampling, one uniform for all of them, attains it at all l at once. So the best plan
of K steps is the smallest c for which the recursion "pi_l makes that sum c w_l", from l = L down to
2, needs no more than K - 1 beginnings. That systematic sampling is optimal for given pi is a union
bound. That these pi are the best is a linear program; its dual solution is a curve on which no plan
of K steps loses less than c, which the tests build and check at many lengths. There is no general
proof. c solves about 2 c K = log(1 + 2 c L).

Derived here. Plans that adapt to TC and DTC with K < L are the subject of Zhao & Cai 2026,
arXiv:2602.20126, and Chen, Cong & Li 2026 (COLT); this is not theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

Against = Literal["tc", "dtc", "both"]
_WIDTH = 1e-14  # of the interval that holds c, relative
_TICKS = 2.0**46  # a certainty is so many: sums up to 2^17 fit into int64
_ROUNDING = 1e-12  # of a sum of probabilities


class Boundaries(NamedTuple):
    """Probabilities that a step begins at positions 2..L, float64 (L - 1,), and the constant c."""

    chance: np.ndarray
    constant: float


def weights(length: int, against: Against) -> np.ndarray:
    """w_2..w_L."""
    places = np.arange(2, length + 1, dtype=np.float64)
    down, up = length - places + 1, places - 1
    return {"tc": down, "dtc": up, "both": np.minimum(down, up)}[against]


@lru_cache(maxsize=1024)
def minimax_boundaries(length: int, steps: int, against: Against) -> Boundaries:
    """The best boundaries for `steps` steps over `length` positions, 2 <= steps < length."""
    w = weights(length, against).tolist()

    def excess(c: float) -> float:
        return sum(_boundaries(w, c)) - (steps - 1)

    c = _root(excess, low=0.0, above=length - steps)
    chance = np.asarray(_boundaries(w, c))
    return Boundaries(chance * ((steps - 1) / chance.sum()), c)


def _root(excess: Callable[[float], float], low: float, above: float) -> float:
    """Where a falling function, `above` 0 at `low`, reaches 0: false position (Illinois)."""
    high, below = 1.0, excess(1.0)
    while below > 0:  # against dtc or both, few steps may need c > 1
        low, above, high = high, below, 2 * high
        below = excess(high)
    kept = 0  # which end the last point did not replace, twice in a row: then its value is halved
    while high - low > _WIDTH * high and below < 0:
        middle = (low * below - high * above) / (below - above)
        if not low < middle < high:
            break
        value = excess(middle)
        if value > 0:
            low, above, below = middle, value, below / 2 if kept > 0 else below
            kept = 1
        else:
            high, below, above = middle, value, above / 2 if kept < 0 else above
            kept = -1
    return high


def _boundaries(w: Sequence[float], c: float) -> list[float]:
    """pi_l from l = L down to 2, such that sum_j (1 - pi_l - ...)_+ = c w_l, clipped to [0, 1].

    With m terms the sum is m (1 - pi_l - near) + far, near = sum_{i <= m} pi_{l+i} and far = sum_{i
    <= m} i pi_{l+i}; m is the first with far >= c w_l. The end of that window only moves down, so
    all of it costs O(L): where far >= c w_l, near + pi_l is at least 1, so that far then grows by
    more than c w_l does if c <= 1; and if c > 1, nothing begins where w grows towards lower l.
    """
    count = len(w)
    chance = [0.0] * (count + 1)  # one place past the last position
    end, near, far = count, 0.0, 0.0
    for a in range(count - 1, -1, -1):
        far += near
        target = c * w[a]
        while end - a > 1 and far - (end - a) * chance[end] >= target:
            near, far = near - chance[end], far - (end - a) * chance[end]
            end -= 1
        chance[a] = min(1.0, max(0.0, 1 - near - (target - far) / (end - a)))
        near += chance[a]
    return chance[:count]


def systematic_waits(chance: np.ndarray) -> np.ndarray:
    """E R_1..E R_L of systematic sampling of beginnings, sum_{j >= 1} (1 - pi_l - ...)_+."""
    reach = np.append(0.0, chance.cumsum())
    waits = np.zeros(len(reach))
    for j in range(1, len(reach)):
        none = 1 - (reach[j:] - reach[:-j])  # the chance of no beginning at l, ..., l + j - 1
        if none.max() <= 0:
            break
        waits[1 : len(none) + 1] += np.maximum(none, 0)
    return waits


class Outcomes(NamedTuple):
    """A law of sizes: probabilities float64 (M,), and sizes int64 (M, steps)."""

    chance: np.ndarray
    sizes: np.ndarray


def systematic(chance: np.ndarray, steps: int) -> Outcomes:
    """All outcomes of systematic sampling of beginnings with these probabilities.

    A step begins at l where the integer part of U + pi_2 + ... + pi_l rises, U uniform: always
    `steps` steps if the probabilities sum to steps - 1.
    """
    length = len(chance) + 1
    ticks = np.rint(chance * _TICKS).astype(np.int64).cumsum()  # sums without rounding
    reach = np.append(0.0, np.minimum(ticks / (ticks[-1] / (steps - 1)), steps - 1))
    breaks = np.unique(np.concatenate([[0.0, 1.0], 1 - reach % 1]))
    widths = np.diff(breaks)
    kept = widths > _ROUNDING  # sums that are equal up to rounding, or whole, part nothing
    middle = (breaks[:-1] + widths / 2)[kept]
    level = np.floor(middle[:, None] + reach)
    begins = np.nonzero(np.diff(level, axis=1))[1].reshape(len(middle), steps - 1) + 1
    sizes = np.diff(begins, axis=1, prepend=0, append=length)
    return Outcomes(widths[kept] / widths[kept].sum(), sizes)
