"""Head and loss in one pass over chunks of rows: logits of the whole batch never exist.

For each chunk of rows: logits = hidden @ weight^T, a row-wise loss, its gradient with respect to
the logits, and from that the gradients of hidden and weight, accumulated on the spot. Memory is one
chunk of logits whatever the batch; nothing is recomputed in the backward pass, which only scales
what the forward pass left.

Run it inside a module's forward, so that DDP and FSDP see the head's weight used there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RowLoss = Callable[[Tensor, slice], Tensor]  # logits (C, K) of the rows in the slice -> losses (C,)

_CHUNK_BYTES = {
    "cpu": 16 << 20,
    "cuda": 512 << 20,
}  # of float32 logits: what a cache, or a GPU, likes


def fused_head(
    hidden: Tensor, weight: Tensor, row_loss: RowLoss, weights: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sum of a row-wise loss of the logits hidden @ weight^T.

    Args:
        hidden: (N, D); cast to the autocast dtype if one is active.
        weight: (K, D) of the head.
        row_loss: pure and row-wise; draws nothing.
        weights: (N,) factors of the rows.
        chunk: rows at a time; None picks it from K and the device.

    Returns:
        The sum (scalar, differentiable in hidden and weight, once) and the unweighted losses,
        detached, float64 (N,).
    """
    if chunk is None:
        budget = _CHUNK_BYTES.get(hidden.device.type, _CHUNK_BYTES["cuda"])
        chunk = max(64, budget // (4 * weight.shape[0]))
    total, rows = _FusedHead.apply(
        hidden, weight, row_loss, weights.double(), chunk, torch.is_grad_enabled()
    )  # type: ignore[misc]
    return total, rows


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        row_loss: RowLoss,
        weights: Tensor,
        chunk: int,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        h, w = hidden.detach().to(dtype or hidden.dtype), weight.detach().to(dtype or hidden.dtype)
        rows = torch.empty(hidden.shape[0], dtype=torch.float64, device=hidden.device)
        grad_h = torch.empty_like(h) if differentiate else None
        grad_w = torch.zeros_like(weight) if differentiate else None
        with torch.autocast(device, enabled=False):
            for start in range(0, hidden.shape[0], chunk):
                at = slice(start, min(start + chunk, hidden.shape[0]))
                logits = h[at] @ w.T
                if grad_h is None or grad_w is None:
                    rows[at] = row_loss(logits, at)
                    continue
                rows[at], grad = _loss_and_gradient(logits, row_loss, weights, at)
                grad_h[at] = grad @ w
                grad_w += grad.T @ h[at]
        ctx.gradients = (grad_h, grad_w)
        ctx.dtypes = (hidden.dtype, weight.dtype)
        ctx.mark_non_differentiable(rows)
        return (rows * weights).sum(), rows

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError(
                "the fused head can be differentiated once; run the forward pass again"
            )
        grad_h, grad_w = ctx.gradients
        ctx.gradients = None
        scale = grad_outputs[0]
        grad_h = grad_h.to(ctx.dtypes[0]).mul_(scale)
        grad_w = grad_w.to(ctx.dtypes[1]).mul_(scale)
        return grad_h, grad_w, None, None, None, None


def _loss_and_gradient(
    logits: Tensor, row_loss: RowLoss, weights: Tensor, at: slice
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        losses = row_loss(leaf, at)
        (grad,) = torch.autograd.grad(losses, leaf, weights[at].to(losses.dtype))
    return losses.detach().double(), grad
