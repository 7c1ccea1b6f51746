"""Optimizer and learning-rate schedules, as frozen settings that are called.

`AdamW(...)(model)` builds the torch optimizer. Weight decay pulls matrices towards zero and nothing
else: biases and norm scales are one-dimensional and set scales, and a row of an embedding table
gets a gradient only when its token occurs, so rare tokens would only shrink. A head is a matrix and
is decayed, also where the embedding is tied to it: the softmax moves every row at every step.

A schedule is a pure function of the number of steps done: `factor = schedule(step)`, and the
learning rate of the next step is `lr * factor`. Nothing of it is state, so a resumed run needs
none. Warm-up is linear, `(step + 1) / warmup_steps`. `Constant` does not know the length of the
run, hence a finished run that is extended equals one that was longer from the start. `Cosine` and
`WSD` are planned over `total_steps`: after an extension with a larger `total_steps` the factor
follows the longer plan from there on, and the steps already made followed the shorter one.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from dlm.errors import UserError


@final
@dataclass(frozen=True)
class AdamW:
    """AdamW with decay on matrices only (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Args:
        lr: peak learning rate; the schedule multiplies it by a factor in [0, 1].
        betas: decay of the running mean and of the running square of the gradient.
        eps: added to the root of the running square.
        weight_decay: decoupled decay of the matrices, per step and unit of learning rate.

    Raises:
        UserError: a value outside its range.
    """

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"optimizer.lr must be a positive number, got {self.lr}; try 3e-4")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(
                f"optimizer.betas must be two numbers in [0, 1), got {self.betas}; try [0.9, 0.95]"
            )
        if self.eps <= 0:
            raise UserError(f"optimizer.eps must be positive, got {self.eps}; try 1e-8")
        if self.weight_decay < 0:
            raise UserError(
                f"optimizer.weight_decay must be at least 0, got {self.weight_decay}; 0 is none"
            )

    def __call__(self, model: nn.Module, *, fused: bool = True) -> torch.optim.AdamW:
        """The optimizer of a model's trainable parameters.

        Args:
            model: the network.
            fused: one kernel for all tensors, on CUDA and on the CPU. False for fp16 with a loss
                scaler, where a fused optimizer would unscale the gradients after the clipping.
        """
        decayed, others = decay_groups(model)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        beta1, beta2 = self.betas
        return torch.optim.AdamW(
            groups, lr=self.lr, betas=(beta1, beta2), eps=self.eps, fused=fused
        )


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters to decay and not to decay, each tensor once, in the model's order."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            (decayed if matrix else others).append(parameter)
    return decayed, others


class LearningRate(ABC):
    """A learning-rate schedule: the factor of the next step from the number of steps done."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Factor in [0, 1] for the step that follows `step` finished ones."""


@final
@dataclass(frozen=True)
class Constant(LearningRate):
    """Linear warm-up, then constant."""

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check(self.warmup_steps)

    def __call__(self, step: int) -> float:
        """Factor of the next step; it does not depend on the length of the run."""
        return _warmup(step, self.warmup_steps)


@final
@dataclass(frozen=True)
class Cosine(LearningRate):
    """Linear warm-up, then half a cosine down to `min_ratio` at `total_steps`.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983.
    """

    total_steps: int
    warmup_steps: int = 0
    min_ratio: float = 0.1

    def __post_init__(self) -> None:
        _check(self.warmup_steps, self.total_steps, self.min_ratio)

    def __call__(self, step: int) -> float:
        """Factor of the next step."""
        if step < self.warmup_steps:
            return _warmup(step, self.warmup_steps)
        done = _progress(step, self.warmup_steps, self.total_steps)
        return self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * done))


@final
@dataclass(frozen=True)
class WSD(LearningRate):
    """Warm-up, stable, then a linear decay over the last `decay_fraction` of the run.

    Source: Hu et al. 2024 (MiniCPM), arXiv:2404.06395.
    """

    total_steps: int
    warmup_steps: int = 0
    decay_fraction: float = 0.2
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup_steps, self.total_steps, self.min_ratio)
        if not 0 < self.decay_fraction <= 1:
            raise UserError(f"lr.decay_fraction must be in (0, 1], got {self.decay_fraction}")

    def __call__(self, step: int) -> float:
        """Factor of the next step."""
        start = self.total_steps - round(self.decay_fraction * self.total_steps)
        done = _progress(step, start, self.total_steps)
        return _warmup(step, self.warmup_steps) * (1 - (1 - self.min_ratio) * done)


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def _progress(step: int, start: int, end: int) -> float:
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))


def _check(warmup_steps: int, total_steps: int | None = None, min_ratio: float = 0.0) -> None:
    if warmup_steps < 0:
        raise UserError(f"lr.warmup_steps must be at least 0, got {warmup_steps}")
    if total_steps is not None and total_steps < 1:
        raise UserError(
            f"lr.total_steps must be at least 1, got {total_steps}; set trainer.max_steps"
        )
    if not 0 <= min_ratio <= 1:
        raise UserError(f"lr.min_ratio must be in [0, 1], got {min_ratio}")
