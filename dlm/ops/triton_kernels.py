"""The losses of `triton_twins` as Triton kernels: one program a row, the logits read in blocks.

Same functions, same arguments, same formulas; the docstrings are there. A row of logits is read two
times for the masked loss and three times for the uniform bound and is replaced by its gradient on
the last; nothing else of the size of the logits is read or written. Importing this module imports
Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from dlm.ops.triton_twins import MAX_LOG_E, SMALL

_BLOCK = 2048  # states a program holds at once: 8 a thread, 64 registers a thread on sm_90
_SMALL, _MAX_LOG_E = tl.constexpr(SMALL), tl.constexpr(MAX_LOG_E)


def cross_entropy(
    logits: Tensor,
    x0: Tensor,
    rate: Tensor,
    weight: Tensor,
    mask_id: int | None,
    grad: Tensor | None = None,
) -> Tensor:
    """See `triton_twins.cross_entropy`."""
    loss = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        cross_entropy_kernel[(logits.shape[0],)](
            *_rows(logits, grad),
            x0.contiguous(),
            rate.contiguous(),
            weight.contiguous(),
            loss,
            logits.shape[1],
            -1 if mask_id is None else mask_id,
            **_shape(logits, grad),
        )
    return loss


def uniform_bound(
    logits: Tensor,
    z: Tensor,
    x0: Tensor,
    log_e: Tensor,
    rate: Tensor,
    weight: Tensor,
    grad: Tensor | None = None,
) -> Tensor:
    """See `triton_twins.uniform_bound`."""
    loss = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        uniform_bound_kernel[(logits.shape[0],)](
            *_rows(logits, grad),
            z.contiguous(),
            x0.contiguous(),
            log_e.contiguous(),
            rate.contiguous(),
            weight.contiguous(),
            loss,
            logits.shape[1],
            **_shape(logits, grad),
        )
    return loss


def _rows(logits: Tensor, grad: Tensor | None) -> tuple[Tensor, int, Tensor, int]:
    """Logits and gradient with their row strides; without a gradient the logits stand for it."""
    out = logits if grad is None else grad
    if logits.stride(1) != 1 or out.stride(1) != 1:
        raise ValueError("the states of a row of logits must lie side by side in memory")
    return logits, logits.stride(0), out, out.stride(0)


def _shape(logits: Tensor, grad: Tensor | None) -> dict[str, Any]:
    block = min(1 << (logits.shape[1] - 1).bit_length(), _BLOCK)
    return {"DIFFERENTIATE": grad is not None, "BLOCK": block, "num_warps": max(1, block // 256)}


@triton.jit
def cross_entropy_kernel(  # noqa: D103
    logits_ptr,
    logits_stride,
    grad_ptr,
    grad_stride,
    x0_ptr,
    rate_ptr,
    weight_ptr,
    loss_ptr,
    K,
    mask_id,
    DIFFERENTIATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * logits_stride
    x0 = tl.load(x0_ptr + row).to(tl.int32)
    rate = tl.load(rate_ptr + row)
    at_x0 = tl.load(logits + x0).to(tl.float32)

    top, rest32 = _softmax_parts(logits, K, mask_id, x0, x0, BLOCK)  # pyright: ignore[reportGeneralTypeIssues]
    rest = rest32.to(tl.float64)
    shift = at_x0.to(tl.float64) - top.to(tl.float64)
    total = rest + tl.exp(shift)
    tl.store(loss_ptr + row, (rate * (tl.log(total) - shift)).to(tl.float32))

    if DIFFERENTIATE:
        factor = rate * tl.load(weight_ptr + row) / total
        scale = factor.to(tl.float32)
        to_x0 = (-factor * rest).to(tl.float32)
        grad = grad_ptr + row * grad_stride
        for start in range(0, K, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = _load(logits, at, K, mask_id)
            g = tl.where(at == x0, to_x0, scale * tl.exp(x - top))
            tl.store(grad + at, g.to(grad_ptr.dtype.element_ty), mask=at < K)


@triton.jit
def uniform_bound_kernel(  # noqa: D103
    logits_ptr,
    logits_stride,
    grad_ptr,
    grad_stride,
    z_ptr,
    x0_ptr,
    log_e_ptr,
    rate_ptr,
    weight_ptr,
    loss_ptr,
    K,
    DIFFERENTIATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * logits_stride
    z = tl.load(z_ptr + row).to(tl.int32)
    x0 = tl.load(x0_ptr + row).to(tl.int32)
    rate = tl.load(rate_ptr + row)
    e = tl.exp(tl.minimum(tl.load(log_e_ptr + row), _MAX_LOG_E))
    same = z == x0
    at_z = tl.load(logits + z).to(tl.float64)
    at_x0 = tl.load(logits + x0).to(tl.float64)

    top, rest32 = _softmax_parts(logits, K, -1, z, x0, BLOCK)  # pyright: ignore[reportGeneralTypeIssues]
    rest = rest32.to(tl.float64)
    exp_x0 = tl.exp(at_x0 - top.to(tl.float64))
    exp_z = tl.where(same, 0.0, tl.exp(at_z - top.to(tl.float64)))  # where z is not x0
    total = rest + exp_x0 + exp_z
    p_x0 = exp_x0 / total
    p_z = tl.where(same, exp_x0, exp_z) / total
    others_x0 = (rest + exp_z) / total
    others_z = (rest + tl.where(same, 0.0, exp_x0)) / total

    clean = 1.0 + e
    seen = 1.0 + e * p_z
    c = tl.where(same, 1.0 / clean, 1.0)
    slope = (tl.where(same, e * clean, e) / seen).to(tl.float32)
    offset = (tl.where(same, e * others_z, -e * p_z) / seen).to(tl.float32)
    scale = (tl.where(same, clean, 1.0) / seen).to(tl.float32)
    inverse = (1.0 / total).to(tl.float32)
    e32 = e.to(tl.float32)

    terms = tl.zeros([BLOCK], tl.float32)
    moments = tl.zeros([BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        p = tl.exp(_load(logits, at, K, -1) - top) * inverse
        grown = 1.0 + e32 * p
        w = slope * p + offset
        counted = (at < K) & (at != z) & (at != x0)
        terms += tl.where(counted, _chi(w, scale * grown), 0.0)
        if DIFFERENTIATE:
            moments += tl.where(counted, p * (e32 * p / grown), 0.0)

    w_x0 = -e * (others_x0 + p_z * clean) / (seen * clean)
    chi_x0 = _chi(w_x0, (1.0 + e * p_x0) / (seen * clean))
    total_terms = c * tl.sum(terms, 0).to(tl.float64) + tl.where(same, 0.0, clean * chi_x0)
    tl.store(loss_ptr + row, (rate * total_terms).to(tl.float32))

    if DIFFERENTIATE:
        mean = tl.sum(moments, 0).to(tl.float64) * c * e
        pull = e * (1.0 + (K + e) / seen)
        g_z = tl.where(same, 0.0, pull * e * p_z / seen)
        g_x0 = tl.where(
            same, -c * pull * e * others_z / seen, -e * e * others_x0 / (1.0 + e * p_x0)
        )
        factor = rate * tl.load(weight_ptr + row)
        to_z = (factor * p_z * (g_z * others_z - p_x0 * g_x0 - mean)).to(tl.float32)
        to_x0 = (factor * p_x0 * (g_x0 * others_x0 - p_z * g_z - mean)).to(tl.float32)
        mean32 = (factor * (mean + p_z * g_z + p_x0 * g_x0)).to(tl.float32)
        factor32 = (factor * c * e).to(tl.float32)
        grad = grad_ptr + row * grad_stride
        for start in range(0, K, BLOCK):
            at = start + tl.arange(0, BLOCK)
            p = tl.exp(_load(logits, at, K, -1) - top) * inverse
            h = e32 * p / (1.0 + e32 * p)
            g = p * (factor32 * h - mean32)
            g = tl.where(at == z, to_z, g)
            g = tl.where(at == x0, to_x0, g)
            tl.store(grad + at, g.to(grad_ptr.dtype.element_ty), mask=at < K)


@triton.jit
def _softmax_parts(logits, K, mask_id, a, b, BLOCK: tl.constexpr):
    """Maximum of the allowed logits, and sum of exp(logit - maximum) over all but a and b.

    Each lane keeps its own maximum and sum, so the only reductions are at the end.
    """
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    rest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = _load(logits, at, K, mask_id)
        kept = tl.where((at == a) | (at == b), 0.0, 1.0)
        rises = x > top
        gap = tl.exp(tl.where(x == top, 0.0, -tl.abs(x - top)))  # -inf - (-inf) is no number
        rest = tl.where(rises, rest * gap + kept, rest + kept * gap)
        top = tl.maximum(top, x)
    highest = tl.max(top, 0)
    return highest, tl.sum(rest * tl.exp(top - highest), 0)


@triton.jit
def _load(logits, at, K, mask_id):
    """A block of a row in float32, -inf beyond its end and at the mask."""
    x = tl.load(logits + at, mask=at < K, other=-float("inf")).to(tl.float32)
    return tl.where(at == mask_id, -float("inf"), x)


@triton.jit
def _chi(w, one_plus_w):
    """w - log(1 + w), from a series where that cancels."""
    s = w / (2.0 + w)
    s2 = s * s
    series = w * s - 2.0 * s * s2 * (1.0 / 3 + s2 * (0.2 + s2 * (1.0 / 7 + s2 / 9)))
    return tl.where(tl.abs(w) < _SMALL, series, w - tl.log(one_plus_w))
