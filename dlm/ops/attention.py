"""Bidirectional attention behind one facade; a position attends inside its own document only.

    o_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j   over j with documents_j == documents_i

`plan` decides once per forward pass which kernel runs and puts the documents into the form that
this kernel wants; all layers share the result. `attention` is `plan` and one call.

* `sdpa`: torch's scaled_dot_product_attention with a boolean mask. Runs everywhere, the plain twin.
  On CPU in 16 bits its kernels are slow, and two matmuls around a softmax replace them.
* `flash`: flash-attn, documents as ragged sequences. CUDA, 16 bits, documents without gaps.
* `flex`: FlexAttention, documents as a block mask: blocks across documents cost nothing.

Shapes: q, k, v and o are [B, H, L, D], also as transposed views; documents is [B, L], any integers.
A document is what has equal ids within a row, so padding (id -1) attends to padding alone.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dlm.errors import UserError

Backend = Literal["auto", "sdpa", "flash", "flex"]
BACKENDS: tuple[Backend, ...] = ("auto", "sdpa", "flash", "flex")

HALF = (torch.float16, torch.bfloat16)
FLASH_HEAD_DIM = 256  # the widest head that flash-attn 2 has kernels for
PLAIN_LENGTH = 1024  # up to here storing all scores on CPU costs less than the kernels of SDPA
FLEX_HEAD_DIM = 16  # the narrowest head that the Triton template of FlexAttention multiplies


class Plan(ABC):
    """A kernel together with the mask of one forward pass."""

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q, k, v [B, H, L, D] of one dtype; the result has their shape and dtype."""


@final
@dataclass(frozen=True)
class Sdpa(Plan):
    """torch's own kernel; `mask` is bool [B, 1, L, L], true where attention is allowed."""

    mask: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Plan`."""
        if q.device.type != "cpu" or q.dtype not in HALF:
            return F.scaled_dot_product_attention(q, k, v, self.mask)
        if q.shape[-2] <= PLAIN_LENGTH:
            return _plain_attention(q, k, v, self.mask)
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), self.mask)
        return out.to(q.dtype)


@final
@dataclass(frozen=True)
class Flash(Plan):
    """flash-attn; `bounds` (int32 [n + 1]) cuts the B * L positions into n documents."""

    kernel: Callable[..., Tensor]
    varlen_kernel: Callable[..., Tensor]
    bounds: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Plan`."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if self.bounds is None:
            return self.kernel(q, k, v).transpose(1, 2)
        out = self.varlen_kernel(
            q.flatten(0, 1),
            k.flatten(0, 1),
            v.flatten(0, 1),
            cu_seqlens_q=self.bounds,
            cu_seqlens_k=self.bounds,
            max_seqlen_q=q.shape[1],
            max_seqlen_k=q.shape[1],
        )
        return out.view(q.shape).transpose(1, 2)


@final
@dataclass(frozen=True)
class Flex(Plan):
    """FlexAttention; `blocks` says which tiles of the L x L scores exist at all."""

    kernel: Callable[..., Tensor]
    blocks: BlockMask | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Plan`."""
        return self.kernel(q, k, v, block_mask=self.blocks)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, documents: Tensor | None = None, backend: Backend = "auto"
) -> Tensor:
    """Bidirectional attention within documents.

    Args:
        q: queries [B, H, L, D].
        k: keys, like q.
        v: values, like q.
        documents: integers [B, L]; attention only inside equal ids of a row. None: one document.
        backend: `auto` takes the fastest one that is present and right for device and dtype.

    Returns:
        [B, H, L, D], of the dtype of q.

    Raises:
        UserError: the backend is unknown, absent, or wrong for the device, dtype or documents.
    """
    planned = plan(documents, backend, device=q.device, dtype=q.dtype, head_dim=q.shape[-1])
    return planned(q, k, v)


def plan(
    documents: Tensor | None,
    backend: Backend,
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
) -> Plan:
    """Choose the kernel and prepare its mask, once for all layers; arguments as in `attention`."""
    if backend == "auto":
        return _automatic(documents, device, dtype, head_dim)
    if backend == "sdpa":
        return Sdpa(None if documents is None else _dense_mask(documents))
    if backend == "flash":
        return _flash(documents, device, dtype, head_dim)
    if backend == "flex":
        return _flex(documents, device)
    raise UserError(f"attention must be one of {', '.join(BACKENDS)}, got {backend!r}")


def _automatic(
    documents: Tensor | None, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Plan:
    """SDPA unless documents on CUDA in 16 bits call for a kernel that skips what is masked.

    Without documents SDPA is already a flash kernel.
    """
    if documents is None or device.type != "cuda" or dtype not in HALF:
        return plan(documents, "sdpa", device=device, dtype=dtype, head_dim=head_dim)
    if _flash_kernels() is not None and head_dim <= FLASH_HEAD_DIM:
        bounds, whole = _bounds(documents)
        if whole:
            return Flash(*_require_flash(), bounds)
    backend: Backend = "flex" if _has_triton() and head_dim >= FLEX_HEAD_DIM else "sdpa"
    return plan(documents, backend, device=device, dtype=dtype, head_dim=head_dim)


def _flash(
    documents: Tensor | None, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Flash:
    kernels = _require_flash()
    if device.type != "cuda" or dtype not in HALF or head_dim > FLASH_HEAD_DIM:
        raise UserError(
            f"attention=flash needs CUDA, 16 bits and heads of at most {FLASH_HEAD_DIM}, got "
            f"{device.type}, {dtype} and {head_dim}; use attention=auto"
        )
    if documents is None:
        return Flash(*kernels, None)
    bounds, whole = _bounds(documents)
    if not whole:
        raise UserError(
            "attention=flash needs every document in one piece, got a row that returns to an "
            "earlier document; use attention=auto"
        )
    return Flash(*kernels, bounds)


def _flex(documents: Tensor | None, device: torch.device) -> Flex:
    compiled = device.type == "cuda"
    if not compiled and torch.is_grad_enabled():
        raise UserError(
            f"attention=flex trains on CUDA only, got {device.type}; use attention=auto"
        )
    blocks = None if documents is None else _block_mask(documents)
    return Flex(_flex_kernel(compiled=compiled), blocks)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The formula as it stands; in 16 bits on CPU half the time of SDPA, forward and backward.

    Autocast would send the softmax through fp32, which is slower than all the rest.
    """
    with torch.autocast("cpu", enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores += torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        return scores.softmax(-1) @ v


def _dense_mask(documents: Tensor) -> Tensor:
    """Bool [B, 1, L, L]: true inside a document."""
    return (documents[:, :, None] == documents[:, None, :]).unsqueeze(1)


def _block_mask(documents: Tensor) -> BlockMask:
    """The block mask of FlexAttention: true inside a document."""

    def same(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return documents[b, i] == documents[b, j]

    rows, length = documents.shape
    return create_block_mask(same, rows, None, length, length, device=documents.device)


def _bounds(documents: Tensor) -> tuple[Tensor, bool]:
    """Where documents begin and end in the flattened batch, and whether each is in one piece.

    Returns:
        int32 [n + 1], from 0 to B * L, and whether no row returns to a document that it had left.
    """
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    ordered = documents.sort(dim=1).values
    distinct = (ordered[:, 1:] != ordered[:, :-1]).sum() + len(documents)
    bounds = F.pad(starts.flatten().nonzero().flatten(), (0, 1), value=documents.numel())
    return bounds.to(torch.int32), bool(distinct == starts.sum())


@functools.cache
def _flash_kernels() -> tuple[Callable[..., Tensor], Callable[..., Tensor]] | None:
    """The kernels of flash-attn, or None where it is absent or built for another torch."""
    try:
        from flash_attn import (  # pyright: ignore[reportMissingImports]
            flash_attn_func,
            flash_attn_varlen_func,
        )
    except ImportError:
        return None
    return flash_attn_func, flash_attn_varlen_func


def _require_flash() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    kernels = _flash_kernels()
    if kernels is None:
        raise UserError(
            "attention=flash needs the package flash-attn, which cannot be imported; "
            "install dlm[flash] or use attention=auto"
        )
    return kernels


@functools.cache
def _has_triton() -> bool:
    """Whether FlexAttention can be compiled for the GPU."""
    try:
        import triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


@functools.cache
def _flex_kernel(*, compiled: bool) -> Callable[..., Tensor]:
    """One kernel where it can be compiled; uncompiled it stores all L x L scores."""
    return cast(
        Callable[..., Tensor], torch.compile(flex_attention) if compiled else flex_attention
    )
