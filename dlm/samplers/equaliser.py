"""Random step sizes that lose the same share of the total correlation of every law.

Sizes are drawn one after the other. Let v(n, k) be the share that k steps lose of n positions, and
v_x = v(x, k - 1). If the first of k sizes is m among n with probability (1 - v) c_m,

    c_m = A_m / (1 + (n - m - 1) v_{n-m}),     A_m = prod_{x=n-m+1}^{n-1} x v_x / (1 + (x - 1) v_x),

v = C / (1 + C), C = sum_m c_m v_{n-m}, then E R_l = v (n - l + 1) for every l, and by the formula
of `dlm.samplers.curve` E KL = v TC for *every* law. One position more is one multiplication,
C(n + 1) = (1 + n C(n)) v_n / (1 + (n - 1) v_n), so all shares cost O(K L). v is 1 to 2 times
the constant of the minimax plan (`dlm.samplers.minimax`) for L up to 4096. Derived here.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=16)
def shares(length: int, steps: int) -> Tensor:
    """v(n, k) for k = 1..steps and n = 0..length, float64 (steps, length + 1)."""
    share, c = np.zeros((length + 1, steps)), np.zeros(steps - 1)  # C(n) for k = 2..steps
    share[2:, 0] = 1
    for n in range(1, length + 1):
        share[n, 1:] = c / (1 + c)
        before = share[n, :-1]
        c = (1 + n * c) * before / (1 + (n - 1) * before)
    return torch.from_numpy(share.T.copy())


def first_size(before: Tensor, left: Tensor) -> Tensor:
    """Probabilities of a size of 1, 2, ..., up to a factor, where another step follows.

    Args:
        before: v(n, k - 1), the shares with the steps that follow, float64 (length + 1,).
        left: n, positions left, int64 (...).

    Returns:
        float64 (..., length); sizes of `left` and more have none.
    """
    rest = left[..., None] - torch.arange(1, len(before), device=left.device)
    x = rest.clamp(min=1).double()
    share = before[rest.clamp(min=1)]
    inside = 1 + (x - 1) * share
    reached = (x * share / inside).cumprod(-1).roll(1, -1)
    reached[..., 0] = 1.0
    return torch.where(rest >= 1, reached / inside, 0.0)
