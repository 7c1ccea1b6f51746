"""Row losses that have a kernel: loss and gradient of raw logits in one call, in closed form.

A `RowKernel` holds what its rows need besides the logits, float64 scalars and tokens, for all rows
of a batch; a call takes the logits of some of them and writes the gradient over the logits. On a
GPU with Triton that is one kernel that reads the row two or three times and writes it once;
anywhere else the twin in plain torch. Which row loss of which noise process equals which of them is
known to the process (`Process.nelbo_kernel`, `Process.cross_entropy_kernel`).

Triton is imported by the first call that can use it.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import final

import torch
from torch import Tensor

from dlm.ops import triton_twins

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class RowKernel(ABC):
    """The losses of N rows of logits and, in closed form, their gradient."""

    @abstractmethod
    def __call__(
        self, logits: Tensor, rows: slice, weight: Tensor, grad: Tensor | None = None
    ) -> Tensor:
        """Losses of some of the rows.

        Args:
            logits: raw output of the head for these rows, (C, K).
            rows: which of the N they are.
            weight: factors of the gradients alone, float64 (C,).
            grad: (C, K), receives the gradient of sum(weight * loss); may be `logits` itself.

        Returns:
            Float32 (C,), without `weight`.
        """


@final
@dataclass(frozen=True, eq=False)
class CrossEntropyRows(RowKernel):
    """rate times the cross-entropy of softmax(logits) without the state `mask_id`.

    x0 is int64 (N,) and never mask_id, rate float64 (N,).
    """

    x0: Tensor
    rate: Tensor
    mask_id: int | None

    def __call__(
        self, logits: Tensor, rows: slice, weight: Tensor, grad: Tensor | None = None
    ) -> Tensor:
        """See `RowKernel`."""
        compute = _implementation(logits).cross_entropy
        return compute(logits, self.x0[rows], self.rate[rows], weight, self.mask_id, grad)


@final
@dataclass(frozen=True, eq=False)
class UniformBoundRows(RowKernel):
    """Bound of the uniform process, softmax(logits) being the leave-one-out posterior.

    z and x0 are int64 (N,), log_e = log(K alpha / (1 - alpha)) and rate = -alpha' / (alpha K)
    float64 (N,).
    """

    z: Tensor
    x0: Tensor
    log_e: Tensor
    rate: Tensor

    def __call__(
        self, logits: Tensor, rows: slice, weight: Tensor, grad: Tensor | None = None
    ) -> Tensor:
        """See `RowKernel`."""
        compute = _implementation(logits).uniform_bound
        scalars = self.log_e[rows], self.rate[rows]
        return compute(logits, self.z[rows], self.x0[rows], *scalars, weight, grad)


def pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a RowKernel of such logits is a Triton kernel: CUDA, at most 32 bits, and Triton."""
    return device.type == "cuda" and dtype in DTYPES and _kernels() is not None


def _implementation(logits: Tensor) -> ModuleType:
    kernels = _kernels() if pays(logits.device, logits.dtype) else None
    return triton_twins if kernels is None else kernels


@functools.cache
def _kernels() -> ModuleType | None:
    """The module of the kernels, or None where Triton cannot be imported."""
    try:
        from dlm.ops import triton_kernels
    except ImportError:
        return None
    return triton_kernels
