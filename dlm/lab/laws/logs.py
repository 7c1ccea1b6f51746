"""Sums of probabilities that are given as logs, float64, right at any scale.

A leave-one-out posterior is a ratio of sums that may differ by hundreds of nats, so nothing here
leaves the logs for longer than one sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL = 1e-200  # below it a sum of float64 terms, the largest 1, may have lost terms to underflow
CHUNK = 1 << 22  # float64 numbers in one temporary: 32 MiB


def log_where(possible: Tensor, log_p: float) -> Tensor:
    """log p where possible, else -inf; float64 of the shape of the condition."""
    result = torch.full(possible.shape, log_p, dtype=torch.float64)
    return result.masked_fill(~possible, -torch.inf)


def exclusive_sum(values: Tensor, dim: int) -> Tensor:
    """Along a dimension, the sum of all the others; -inf are summed, never subtracted."""
    zero = torch.zeros_like(values.narrow(dim, 0, 1))
    before = torch.cat([zero, values.narrow(dim, 0, values.shape[dim] - 1)], dim).cumsum(dim)
    after = torch.cat([values.narrow(dim, 1, values.shape[dim] - 1), zero], dim)
    return before + after.flip(dim).cumsum(dim).flip(dim)


def exclusive_logsumexp(values: Tensor, dim: int) -> Tensor:
    """Along a dimension, log of the sum of exp of all the others."""
    nothing = torch.full_like(values.narrow(dim, 0, 1), -torch.inf)
    before = torch.cat([nothing, values.narrow(dim, 0, values.shape[dim] - 1)], dim)
    after = torch.cat([values.narrow(dim, 1, values.shape[dim] - 1), nothing], dim)
    right = after.flip(dim).logcumsumexp(dim).flip(dim)
    return torch.logaddexp(before.logcumsumexp(dim), right)


def log_matmul(log_rows: Tensor, kernel: Tensor) -> Tensor:
    """log(exp(log_rows) @ kernel): a product of matrices, exact where it would underflow.

    Args:
        log_rows: (..., B, n), -inf allowed.
        kernel: non-negative, (..., n, m), with the same leading dimensions or none.

    Returns:
        (..., B, m).
    """
    top = log_rows.amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    sums = (log_rows - top).exp() @ kernel
    result = sums.log() + top
    small = sums < _SMALL
    if not small.any():
        return result
    reached = (log_rows > -torch.inf).double() @ (kernel > 0).double() > 0
    lost = (small & reached).any(-1)
    kernels = kernel.expand(*lost.shape[:-1], -1, -1)
    size = max(1, CHUNK // kernel[..., 0].numel() // kernel.shape[-1])
    for index in lost.nonzero().split(size):
        at = index.unbind(-1)
        terms = log_rows[at][:, :, None] + kernels[at[:-1]].log()
        result[at] = terms.logsumexp(-2)
    return result


def batches(count: int, numbers: int) -> list[slice]:
    """Slices of a batch such that temporaries of `numbers` float64 a row stay small.

    An empty batch has one, so that there is something to concatenate.
    """
    size = max(1, CHUNK // max(numbers, 1))
    return [slice(begin, begin + size) for begin in range(0, max(count, 1), size)]


def log_scatter(values: Tensor, index: Tensor, size: int) -> Tensor:
    """log sum of exp(values) by group, float64 (B, size).

    Args:
        values: (B, N), -inf allowed.
        index: the group of each column, int64 (N,).
        size: number of groups.
    """
    where = index.expand_as(values)
    top = values.new_full((len(values), size), -torch.inf)
    top = top.scatter_reduce(1, where, values, "amax")
    top = torch.where(top == -torch.inf, 0.0, top)
    sums = torch.zeros_like(top).scatter_add(1, where, (values - top.gather(1, where)).exp())
    return sums.log() + top
