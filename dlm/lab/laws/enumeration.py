"""Laws with few sequences: all of them, and the entropy of every subset of positions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dlm.samplers.curve import InformationCurve

MOST = 1_000_000  # sequences in a table


def all_tokens(symbols: int, length: int) -> Tensor:
    """Every sequence, int64 (V^L, L), in the order of a flattened table."""
    index = torch.arange(symbols**length)[:, None]
    return index // symbols ** torch.arange(length - 1, -1, -1) % symbols


def subset_curve(table: Tensor) -> InformationCurve:
    """Z of a table (V,) * L: Z_j = H_1 + H_{j-1} - H_j, H_k the mean entropy of k positions.

    Costs (V + 1)^L.
    """
    length = table.ndim
    sums, counts = np.zeros(length + 1), np.zeros(length + 1)

    def visit(marginal: Tensor, axis: int) -> None:
        """All subsets that keep the first `axis` axes left of `marginal`."""
        if axis == marginal.ndim:
            sums[axis] += torch.special.entr(marginal).sum().item() if axis else 0.0
            counts[axis] += 1
            return
        visit(marginal, axis + 1)
        visit(marginal.sum(axis), axis)

    visit(table.double() / table.double().sum(), 0)
    return curve_from_entropies(sums / counts)


def curve_from_entropies(mean: np.ndarray) -> InformationCurve:
    """Z from H_0 = 0, H_1..H_L, nats; rounding below zero is cut."""
    values = np.maximum(mean[1] + mean[:-1] - mean[1:], 0.0)
    return InformationCurve((0.0, *values[1:].tolist()))
