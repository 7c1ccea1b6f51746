"""Head and loss in one pass over chunks of rows: logits of the whole batch never exist.

For each chunk of rows the logits hidden @ weight^T go into one reused buffer. A row-wise loss reads
them a few rows at a time, so that they stay in the cache, and its gradient with respect to them is
written in their place; from that come the gradients of hidden and weight, accumulated on the spot.
Memory is one chunk of logits whatever the batch; nothing is recomputed in the backward pass, which
only scales what the forward pass left.

The row loss and its gradient are compiled as one function, where that pays: from `COMPILE_FROM`
logits a call. Where torch cannot compile, a warning says why and everything runs eagerly.

Run it inside a module's forward, so that DDP and FSDP see the head's weight used there.
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlm.ops.triton_rows import RowKernel, pays

RowLoss = Callable[..., Tensor]  # logits (C, K) and what is known per row (C,) -> losses (C,)

# Rows x states of a call. Compiling takes 5 to 15 seconds, once a row loss, and saves 5 to 10 ns a
# logit on a CPU: from here on that is regained within about a hundred calls.
COMPILE_FROM = 1 << 23


def fused_head(
    hidden: Tensor,
    weight: Tensor,
    row_loss: RowLoss,
    weights: Tensor,
    *per_row: Tensor,
    kernel: RowKernel | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of a row-wise loss of the logits hidden @ weight^T.

    Args:
        hidden: (N, D); cast to the autocast dtype if one is active, as is weight.
        weight: (K, D) of the head.
        row_loss: called with logits and the same rows of each of `per_row`; pure and row-wise,
            draws nothing. What is compiled is kept per function object: pass the same one again.
        weights: (N,) factors of the rows.
        per_row: (N,) tensors.
        kernel: the same losses and their gradient from the logits in one call; taken where it pays.
        chunk: rows at a time; None picks it from K, dtype and device.

    Returns:
        The sum (float64 scalar, differentiable in hidden and weight, once) and the unweighted
        losses, detached, float64 (N,).

    Raises:
        RuntimeError: on differentiating the sum a second time.
    """
    grad = torch.is_grad_enabled()  # inside a Function, needs_input_grad is true under no_grad
    wanted = (grad and hidden.requires_grad, grad and weight.requires_grad)
    return _apply(hidden, weight, row_loss, weights.double(), per_row, kernel, chunk, wanted)


def _apply(*args: Any) -> tuple[Tensor, Tensor]:
    """Outside any graph: an outer torch.compile would unroll the chunks.

    Decorating it would load the compiler with this module, two seconds for who compiles nothing.
    """
    run = _undisturbed() if "torch._dynamo" in sys.modules else _FusedHead.apply
    return run(*args)  # pyright: ignore[reportReturnType]


@lru_cache(maxsize=1)
def _undisturbed() -> Callable[..., Any]:
    return torch.compiler.disable(_FusedHead.apply)


@final
class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        row_loss: RowLoss,
        weights: Tensor,
        per_row: tuple[Tensor, ...],
        kernel: RowKernel | None,
        chunk: int | None,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        h, w = hidden.detach().to(dtype or hidden.dtype), weight.detach().to(dtype or hidden.dtype)
        losses = torch.empty(h.shape[0], dtype=torch.float64, device=h.device)
        grad_h = torch.empty_like(h) if wanted[0] else None
        grad_w = torch.zeros_like(weight) if wanted[1] else None
        sizes = _sizes(h, w, chunk)
        step = (_with_gradient if any(wanted) else _without)(row_loss)
        if not pays(h.device, h.dtype):
            kernel = None
        compiled = kernel is None and h.shape[0] * w.shape[0] >= COMPILE_FROM
        buffer = torch.empty(min(sizes.chunk, len(h)), len(w), dtype=h.dtype, device=h.device)
        with torch.autocast(device, enabled=False), step.ready(compiled):
            for rows in _even(0, len(h), sizes.chunk):
                logits = buffer[: rows.stop - rows.start]
                _multiply(h[rows], w, logits, sizes.columns)
                for part in _even(rows.start, rows.stop, sizes.block):
                    here = logits[part.start - rows.start : part.stop - rows.start]
                    if kernel is not None:
                        grad = here if any(wanted) else None
                        losses[part] = kernel(here, part, weights[part], grad)
                        continue
                    known = [x[part] for x in per_row]
                    losses[part] = step(compiled, here, weights[part], *known)
                if grad_h is not None:
                    torch.mm(logits, w, out=grad_h[rows])
                if grad_w is not None and grad_w.dtype == h.dtype:
                    grad_w.addmm_(logits.T, h[rows])
                elif grad_w is not None:
                    grad_w += logits.T @ h[rows]
        ctx.gradients = (grad_h, grad_w)
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.gradients is None:
            raise RuntimeError(
                "the fused head can be differentiated once; run the forward pass again"
            )
        grad_h, grad_w = ctx.gradients
        ctx.gradients = None
        scale = grad_outputs[0]
        if grad_h is not None:
            grad_h = grad_h.to(ctx.dtype).mul_(scale)
        if grad_w is not None:
            grad_w = grad_w.mul_(scale)
        return grad_h, grad_w, None, None, None, None, None, None


class _Sizes(NamedTuple):
    """Rows of the logits buffer, rows of a call of the row loss, states of a matmul into it."""

    chunk: int
    block: int
    columns: int


def _sizes(h: Tensor, w: Tensor, chunk: int | None) -> _Sizes:
    """Measured on CPUs at 50,258 states and width 256; those of a GPU are a guess.

    On a CPU, 32 MB of float32 logits are the most that malloc gives back warm, and narrower numbers
    take more rows, because adding the gradient of the weight to its float32 sum costs as much as
    the matmul. 8 rows of 50,258 logits stay in the second-level cache from one pass of the loss to
    the next. The matmul that writes logits in float32 is up to 1.7 times as fast when a part of
    the weight stays there, too.
    """
    states, width = w.shape
    if h.device.type != "cpu":
        chunk = chunk or max(256, (128 << 20) // states)
        return _Sizes(chunk, chunk, states)
    narrow = h.dtype.itemsize < 4
    chunk = chunk or max(64, (24 if narrow else 8) * 1024**2 // states)
    columns = states if narrow else max(64, 256 * 1024 // (width * h.dtype.itemsize))
    return _Sizes(chunk, max(4, 400 * 1024 // states), columns)


def _even(start: int, stop: int, most: int) -> Iterator[slice]:
    """The range in slices of at most `most`, as even as can be: no odd row to compile for."""
    parts = math.ceil((stop - start) / most)
    edges = [start + (stop - start) * i // parts for i in range(parts + 1)] if parts else []
    return (slice(a, b) for a, b in itertools.pairwise(edges))


def _multiply(h: Tensor, w: Tensor, out: Tensor, columns: int) -> None:
    """out = h @ w^T."""
    for start in range(0, w.shape[0], columns):
        part = slice(start, start + columns)
        torch.mm(h, w[part].T, out=out[:, part])


@final
class _Step:
    """A function of logits, weights and the per-row tensors, eager and compiled."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._eager, self._compiled = function, None
        self._failed = False

    def ready(self, compiled: bool) -> Any:
        """The context in which to call it."""
        if not compiled:
            return nullcontext()
        config = torch._dynamo.config  # pyright: ignore[reportPrivateImportUsage]
        known = hasattr(config, "trace_autograd_ops")
        return config.patch(trace_autograd_ops=True) if known else nullcontext()

    def __call__(self, compiled: bool, *args: Tensor) -> Tensor:
        """Losses of the rows, float64 (C,)."""
        if not compiled or self._failed:
            return self._eager(*args)
        try:
            if self._compiled is None:
                for each in args:
                    torch._dynamo.maybe_mark_dynamic(each, 0)
                self._compiled = torch.compile(  # pyright: ignore[reportCallIssue]
                    self._eager, fullgraph=True, isolate_recompiles=True
                )
            return self._compiled(*args)
        except Exception as error:
            self._failed = True
            reason = " ".join(str(error).split("\n")[:2])
            warnings.warn(f"the loss runs eagerly, torch.compile failed: {reason}", stacklevel=2)
            return self._eager(*args)


@lru_cache(maxsize=64)
def _with_gradient(row_loss: RowLoss) -> _Step:
    """Writes the gradient of the weighted losses over the logits."""

    def step(logits: Tensor, weights: Tensor, *per_row: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            losses = row_loss(leaf, *per_row)
            (grad,) = torch.autograd.grad(losses, leaf, weights.to(losses.dtype))
        logits.copy_(grad)
        return losses.detach().double()

    return _Step(step)


@lru_cache(maxsize=64)
def _without(row_loss: RowLoss) -> _Step:
    def step(logits: Tensor, weights: Tensor, *per_row: Tensor) -> Tensor:
        return row_loss(logits, *per_row).double()

    return _Step(step)
