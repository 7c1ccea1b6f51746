"""What the outputs of a network mean: raw logits in, a `Prediction` out.

The MASK column is set to -inf first (no clean posterior has mass there), and everything from here
on is at least float32. For the absorbing process `Denoising` and `LeaveOneOut` are the same thing.

Source: Gourevitch et al. 2026, arXiv:2605.22765 (leave-one-out); Lou et al. 2024, arXiv:2310.16834
(score).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dlm.processes import Prediction, Process, State
from dlm.processes.prediction import Posterior


class Parameterization(ABC):
    """Reads logits (..., K) of noisy tokens (...) at times t as a prediction."""

    # What softmax(logits) without MASK is, for kernels that start from raw logits; None: neither.
    softmax_is: ClassVar[Posterior | None] = None

    @abstractmethod
    def __call__(self, logits: Tensor, process: Process, state: State, t: Tensor) -> Prediction:
        """The prediction these logits stand for."""


def _clean_log_probs(logits: Tensor, process: Process) -> Tensor:
    logits = _at_least_float32(logits)
    if process.mask_id is not None:
        mask = torch.tensor(process.mask_id, device=logits.device)
        logits = logits.index_fill(-1, mask, -torch.inf)
    return logits.log_softmax(-1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@final
@dataclass(frozen=True)
class Denoising(Parameterization):
    """softmax(logits) is the denoiser p(x0^i | z)."""

    softmax_is: ClassVar[Posterior | None] = "denoiser"

    def __call__(self, logits: Tensor, process: Process, state: State, t: Tensor) -> Prediction:
        """Made of the denoiser (or of the leave-one-out posterior where they agree)."""
        return process.from_denoiser(_clean_log_probs(logits, process), state, t)


@final
@dataclass(frozen=True)
class LeaveOneOut(Parameterization):
    """softmax(logits) is the leave-one-out posterior p(x0^i | z^{-i})."""

    softmax_is: ClassVar[Posterior | None] = "loo"

    def __call__(self, logits: Tensor, process: Process, state: State, t: Tensor) -> Prediction:
        """Made of the leave-one-out posterior."""
        return Prediction(process, state, t, log_loo=_clean_log_probs(logits, process))


@final
@dataclass(frozen=True)
class Score(Parameterization):
    """The logits are log m(y) / m(z), ratios of the noisy marginal, in the process's scaling."""

    def __call__(self, logits: Tensor, process: Process, state: State, t: Tensor) -> Prediction:
        """Made of the ratios; they need not come from a normalised marginal."""
        return process.from_score(_at_least_float32(logits), state, t)
