"""Two losses over the vocabulary and their gradients, row by row, in closed form and plain torch.

What the Triton kernels of `triton_kernels` compute, in the same formulas: their oracle, and what
runs where they cannot. With p = softmax(logits) over the states that are allowed:

Masked cross-entropy      loss = -rate log p(x0)            gradient  rate (p_j - 1[j = x0])

Uniform bound, p = loo    written with e = K alpha / (1 - alpha), chi(w) = w - log(1 + w) >= 0 and
the ratio of rates 1 + w_y = (1 + e p_y) / (1 + e p_z), times 1 + e if z = x0, divided by 1 + e if
y = x0 /= z:

    loss = rate c sum_{y != x0, z} chi(w_y)  +  rate (1 + e) chi(w_x0) 1[z != x0],
    c    = 1 / (1 + e) if z = x0, else 1

This is the bound of `dlm.processes.uniform` as a sum of terms that are not negative, so nothing
cancels in float32, whatever alpha. Its gradient is p_j (G_j - sum_y p_y G_y) with, up to a constant
and with h = e p / (1 + e p),

    G_y = rate c e h_y                                                       y other than x0 and z
    G_z = rate e h_z (1 + (K + e) / (1 + e p_z)),  G_x0 = -rate e^2 (1 - p_x0) / (1 + e p_x0)
    G_z = -rate c e^2 (1 - p_z) / (1 + e p_z) (1 + (K + e) / (1 + e p_z))    if z = x0

where 1 - p of the two special states is summed from the others. (Do not differentiate the loss
automatically: what cancels on paper in these lines is large in float32.)

Passes over K run in float32 whatever the logits are, scalars of a row in float64.
Source: MDLM, arXiv:2406.07524, and UDLM, arXiv:2412.10193, for the two bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Where w is small, chi(w) = w s - 2 s^3 (1/3 + s^2/5 + s^4/7 + s^6/9 + ...), s = w / (2 + w): the
# difference as it stands has no digits left. Up to here the rest of the series is below 1e-7.
SMALL = 0.3

# log e is kept at or below this: e^2 must fit into float32. In training log e <= log K + 11.5.
MAX_LOG_E = 40.0


def cross_entropy(
    logits: Tensor,
    x0: Tensor,
    rate: Tensor,
    weight: Tensor,
    mask_id: int | None,
    grad: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each row among the states other than MASK, and its gradient.

    Args:
        logits: (C, K), any floating dtype; may be -inf.
        x0: clean tokens, int64 (C,), none of them MASK.
        rate: factors of the losses, float64 (C,).
        weight: further factors of the gradients alone, float64 (C,).
        mask_id: the state without mass, if there is one.
        grad: (C, K), receives the gradient of sum(weight * loss); may be `logits` itself.

    Returns:
        Losses in nats, float32 (C,).
    """
    x, top = _shifted(logits, mask_id)
    exps = x.exp()
    rest = exps.scatter(-1, x0[:, None], 0.0).sum(-1).double()
    shift = logits.gather(-1, x0[:, None]).squeeze(-1).double() - top.double()
    total = rest + shift.exp()
    if grad is not None:
        gradient = exps * (weight * rate / total).float()[:, None]
        gradient.scatter_(-1, x0[:, None], (-weight * rate * rest / total).float()[:, None])
        grad.copy_(gradient)
    return (rate * (total.log() - shift)).float()


def uniform_bound(
    logits: Tensor,
    z: Tensor,
    x0: Tensor,
    log_e: Tensor,
    rate: Tensor,
    weight: Tensor,
    grad: Tensor | None = None,
) -> Tensor:
    """Bound of the uniform process from a leave-one-out posterior, and its gradient.

    Args:
        logits: (C, K), any floating dtype; may be -inf.
        z: noisy tokens, int64 (C,).
        x0: clean tokens, int64 (C,).
        log_e: log(K alpha / (1 - alpha)), float64 (C,).
        rate: -alpha' / (alpha K), float64 (C,).
        weight: further factors of the gradients alone, float64 (C,).
        grad: (C, K), receives the gradient of sum(weight * loss); may be `logits` itself.

    Returns:
        Integrand of the bound, nats per unit of t, float32 (C,).
    """
    k = logits.shape[-1]
    x, _ = _shifted(logits, None)
    at_z, at_x0 = z[:, None], x0[:, None]
    same = z == x0
    picked_z, picked_x0 = (x.gather(-1, at).squeeze(-1).double().exp() for at in (at_z, at_x0))
    exps = x.exp()
    rest = exps.scatter(-1, at_z, 0.0).scatter(-1, at_x0, 0.0).sum(-1).double()
    total = rest + picked_x0 + torch.where(same, 0.0, picked_z)
    p_z, p_x0 = picked_z / total, picked_x0 / total
    others_z = (rest + torch.where(same, 0.0, picked_x0)) / total
    others_x0 = (rest + torch.where(same, 0.0, picked_z)) / total

    e = log_e.clamp(max=MAX_LOG_E).exp()
    seen = 1 + e * p_z
    c = torch.where(same, 1 / (1 + e), 1.0)
    slope = torch.where(same, e * (1 + e), e) / seen
    offset = torch.where(same, e * others_z, -e * p_z) / seen
    scale = torch.where(same, 1 + e, 1.0) / seen
    to = lambda scalar: scalar.float()[:, None]  # noqa: E731

    p = exps * to(1 / total)
    grown = 1 + to(e) * p
    w = to(slope) * p + to(offset)
    terms = _chi(w, to(scale) * grown).scatter(-1, at_z, 0.0).scatter(-1, at_x0, 0.0)
    w_x0 = -e * (others_x0 + p_z * (1 + e)) / (seen * (1 + e))
    chi_x0 = _chi(w_x0, (1 + e * p_x0) / (seen * (1 + e)))
    loss = rate * (c * terms.sum(-1).double() + torch.where(same, 0.0, (1 + e) * chi_x0))
    if grad is None:
        return loss.float()

    h = to(e) * p / grown
    mean = (p * h).scatter(-1, at_z, 0.0).scatter(-1, at_x0, 0.0).sum(-1).double() * c * e
    pull = e * (1 + (k + e) / seen)
    g_z = torch.where(same, 0.0, pull * e * p_z / seen)
    g_x0 = torch.where(same, -c * pull * e * others_z / seen, -(e**2) * others_x0 / (1 + e * p_x0))
    factor = weight * rate
    to_z = factor * p_z * (g_z * others_z - p_x0 * g_x0 - mean)
    to_x0 = factor * p_x0 * (g_x0 * others_x0 - p_z * g_z - mean)
    mean = mean + p_z * g_z + p_x0 * g_x0
    gradient = p * (to(factor * c * e) * h - to(factor * mean))
    gradient.scatter_(-1, at_z, to(to_z)).scatter_(-1, at_x0, to(to_x0))
    grad.copy_(gradient)
    return loss.float()


def _shifted(logits: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
    """Logits in float32, less their maximum (C,) over the allowed states, and that maximum."""
    x = logits.float()
    if mask_id is not None:
        x = x.index_fill(-1, torch.tensor(mask_id, device=x.device), -torch.inf)
    top = x.amax(-1)
    return x - top[:, None], top


def _chi(w: Tensor, one_plus_w: Tensor) -> Tensor:
    """w - log(1 + w); both are given because neither follows from the other without loss."""
    s = w / (2 + w)
    s2 = s * s
    series = w * s - 2 * s * s2 * (1 / 3 + s2 * (1 / 5 + s2 * (1 / 7 + s2 / 9)))
    return torch.where(w.abs() < SMALL, series, w - one_plus_w.log())
