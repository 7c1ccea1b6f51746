"""Random step sizes that are safe for every law: the minimax boundary plan and the equaliser.

Let pi_l be the probability that a step begins at position l, and E R_l as in `dlm.samplers.curve`.
Since TC = sum_l (Z_l - Z_{l-1}) (L - l + 1) and DTC = sum_l (Z_l - Z_{l-1}) (l - 1), a plan with
E R_l <= c w_l loses at most c TC for w_l = L - l + 1, c DTC for w_l = l - 1, and c times both
for their minimum, whatever the law. For given pi every coupling of the beginnings has

    E R_l >= sum_{j >= 1} (1 - pi_l - ... - pi_{l+j-1})_+

and systematic sampling, one uniform for all of them, attains it at all l at once. So the best plan
of K steps is the smallest c for which the recursion "pi_l makes that sum c w_l", from l = L down to
2, needs no more than K - 1 beginnings. That systematic sampling is optimal for given pi is a union
bound; that these pi are the best was checked against the linear program over all random plans, not
proved. c solves about 2 c K = log(1 + 2 c L).

The equaliser draws one size after the other and has E R_l = v (L - l + 1) exactly, so it loses v TC
for *every* law; v is 1.3 to 1.9 times the minimax c.

Both are derived here. Plans that adapt to TC and DTC with K < L are the subject of Zhao & Cai 2026,
arXiv:2602.20126, and Chen, Cong & Li 2026 (COLT); these are not theirs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

Against = Literal["tc", "dtc", "both"]
_HALVINGS = 60
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


@lru_cache(maxsize=256)
def minimax_boundaries(length: int, steps: int, against: Against) -> Boundaries:
    """The best boundaries for `steps` steps over `length` positions, 2 <= steps < length."""
    w = weights(length, against)
    low, high = 0.0, 1.0
    while _boundaries(w, high).sum() > steps - 1:  # w of a law of two positions may need c > 1
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _boundaries(w, middle).sum() <= steps - 1:
            high = middle
        else:
            low = middle
    chance = _boundaries(w, high)
    return Boundaries(chance * ((steps - 1) / chance.sum()), high)


def _boundaries(w: np.ndarray, c: float) -> np.ndarray:
    """pi_l from l = L down to 2, such that sum_j (1 - pi_l - ...)_+ = c w_l, clipped to [0, 1]."""
    count = len(w)
    chance = np.zeros(count)
    suffix = np.zeros(count + 1)  # sum of chance[a:]
    for a in range(count - 1, -1, -1):
        target, most = c * w[a], count - a
        tail = suffix[a + 1] - suffix[a + 1 :]  # tail_j, j = 0..most - 1
        used = np.cumsum(tail)  # T_m, m = 1..most
        m = np.arange(1, most + 1)
        enough = np.empty(most, dtype=bool)
        enough[:-1] = m[:-1] * tail[1:] - used[:-1] >= target
        enough[-1] = True
        first = int(enough.argmax())
        chance[a] = min(1.0, max(0.0, 1 - (target + used[first]) / (first + 1)))
        suffix[a] = suffix[a + 1] + chance[a]
    return chance


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
    reach = np.concatenate([[0.0], np.cumsum(chance)])
    reach = np.minimum(reach * ((steps - 1) / reach[-1]), steps - 1)
    nearest = np.round(reach)  # sums that are whole up to rounding are whole
    reach = np.where(np.abs(reach - nearest) < _ROUNDING, nearest, reach)
    breaks = np.unique(np.concatenate([[0.0, 1.0], 1 - reach % 1]))
    widths = np.diff(breaks)
    kept = widths > _ROUNDING
    middle = (breaks[:-1] + widths / 2)[kept]
    level = np.floor(middle[:, None] + reach)
    begins = np.diff(level, axis=1) > 0  # (M, L - 1)
    sizes = np.zeros((len(middle), steps), dtype=np.int64)
    for row, begin in enumerate(begins):
        edges = np.concatenate([[0], np.flatnonzero(begin) + 1, [length]])
        sizes[row, : len(edges) - 1] = np.diff(edges)
    return Outcomes(widths[kept], sizes)


class Equalised(NamedTuple):
    """v(n, k) for all n <= L, float64 (L + 1,), and the law of the first of k sizes, (L + 1, L)."""

    value: np.ndarray
    first: np.ndarray


@lru_cache(maxsize=8)
def equaliser(length: int, steps: int) -> tuple[Equalised, ...]:
    """For k = 1..steps steps: what is lost, and how the first size is drawn.

    With v_x = v(x, k - 1), the law of the first size m among n is (1 - v) c_m,

        c_m = A_m / (1 + (n - m - 1) v_{n-m}),      A_m = prod_{x = n-m+1}^{n-1} x v_x / (1 + (x -
        1) v_x),

    v = C / (1 + C), C = sum_m c_m v_{n-m}: then E R_l = v (n - l + 1) for every l.
    """
    sizes = np.arange(length + 1)
    value = np.where(sizes > 1, 1.0, 0.0)
    first = np.zeros((length + 1, length))
    first[sizes[1:], sizes[1:] - 1] = 1.0
    made = [Equalised(value, first)]
    for _ in range(steps - 1):
        before = made[-1].value
        x = np.arange(1, length + 1)
        inside = 1 + (x - 1) * before[1:]
        ratio = x * before[1:] / inside
        value, first = np.zeros(length + 1), np.zeros((length + 1, length))
        first[1, 0] = 1.0
        for n in range(2, length + 1):
            down = slice(n - 2, None, -1) if n > 1 else slice(0, 0)  # x = n - 1 down to 1
            a = np.concatenate([[1.0], np.cumprod(ratio[down])[:-1]])
            c = a / inside[down]
            total = float(c @ before[1:][down])
            value[n] = total / (1 + total)
            first[n, : n - 1] = (1 - value[n]) * c
        made.append(Equalised(value, first))
    return tuple(made)
