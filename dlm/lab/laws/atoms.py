"""Sums over a list of sequences: a law with few of them, or one centred on each.

Every position of a sequence may be replaced, with probability `smoothing`, by an even token; then
a sequence n is a product with masses m_nj = (1 - smoothing) e_j(x_nj) + smoothing mean_v e_j(v).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlm.lab.laws.logs import batches, exclusive_sum, log_scatter


def atom_weights(
    atoms: Tensor, log_evidence: Tensor, log_shares: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Log leave-one-out weights, float64 (B, L, V).

    Args:
        atoms: sequences, int64 (N, L).
        log_evidence: float64 (B, L, V).
        log_shares: of the sequences, (N,); None: equal.
        smoothing: in [0, 1).
    """
    result = torch.empty_like(log_evidence)
    symbols = log_evidence.shape[-1]
    for at in batches(len(log_evidence), atoms.numel()):
        others = exclusive_sum(_masses(atoms, log_evidence[at], smoothing), -1)
        if log_shares is not None:
            others = others + log_shares[:, None]
        for i in range(atoms.shape[1]):
            result[at, i] = log_scatter(others[:, :, i], atoms[:, i], symbols)
    if smoothing == 0:
        return result
    even = result.logsumexp(-1, keepdim=True) + math.log(smoothing / symbols)
    return torch.logaddexp(result + math.log1p(-smoothing), even)


def atom_marginal(
    atoms: Tensor, log_evidence: Tensor, log_shares: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """log of the mean over sequences of prod_j m_nj, float64 (B,); see `atom_weights`."""
    parts = []
    for at in batches(len(log_evidence), atoms.numel()):
        mass = _masses(atoms, log_evidence[at], smoothing).sum(-1)
        equal = torch.full((len(atoms),), -math.log(len(atoms)), dtype=torch.float64)
        parts.append((mass + (equal if log_shares is None else log_shares)).logsumexp(-1))
    return torch.cat(parts)


def _masses(atoms: Tensor, evidence: Tensor, smoothing: float) -> Tensor:
    """log m_nj, float64 (B, N, L)."""
    picked = evidence[:, torch.arange(atoms.shape[1]), atoms]
    if smoothing == 0:
        return picked
    even = evidence.logsumexp(-1) + math.log(smoothing / evidence.shape[-1])
    return torch.logaddexp(picked + math.log1p(-smoothing), even[:, None])
