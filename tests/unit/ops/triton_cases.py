"""Rows of logits, easy and nasty, and what float64 autograd of the process says about them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dlm import Process, State
from dlm.objectives import CrossEntropy, Elbo, Objective
from dlm.ops.triton_rows import RowKernel
from dlm.parameterizations import Denoising, LeaveOneOut, Parameterization
from tests.toys import absorbing, uniform

SIZES = [2, 5, 257, 1000, 50_258]
NOISE = [1e-5, 0.5, 1 - 1e-4]  # 1 - alpha
KINDS = ["even", "sure", "holes"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FITTING = [
    ("absorbing", LeaveOneOut(), Elbo()),
    ("absorbing", Denoising(), Elbo()),
    ("absorbing", LeaveOneOut(), CrossEntropy()),
    ("absorbing", Denoising(), CrossEntropy()),
    ("uniform", LeaveOneOut(), Elbo()),
]


class Rows(NamedTuple):
    """What a kernel is given, its scalars aside."""

    process: Process
    logits: Tensor
    state: State
    t: Tensor
    x0: Tensor
    weight: Tensor

    def cuda(self) -> "Rows":
        """The same on the GPU."""
        state, tensors = State(self.state.tokens.cuda()), (self.t, self.x0, self.weight)
        return Rows(self.process, self.logits.cuda(), state, *(each.cuda() for each in tensors))


def make(name: str, states: int, noise: float, kind: str, dtype: torch.dtype) -> Rows:
    """Six rows (three of a large vocabulary): z == x0 in the first half if the process allows it.

    Kinds: `even` logits; `sure` of the clean token in the first row, of the noisy one in the last,
    of any token in between; with `holes` of -inf, at the noisy token of the first row and at the
    clean one of the last among others.
    """
    generator = torch.Generator().manual_seed(states)
    count = 6 if states < 50_000 else 3
    process = absorbing(symbols=states - 1) if name == "absorbing" else uniform(symbols=states)
    symbols = states - (name == "absorbing")
    x0, z = torch.randint(symbols, (2, count), generator=generator)
    z = torch.where(torch.arange(count) < count // 2, x0, z)
    z[-1] = (x0[-1] + 1) % symbols
    logits = 2 * torch.randn(count, states, generator=generator)
    if kind == "sure":
        peaks = torch.randint(symbols, (count,), generator=generator)
        peaks[0], peaks[-1] = x0[0], z[-1]
        logits.scatter_add_(-1, peaks[:, None], torch.full((count, 1), 6 + math.log(states)))
    if kind == "holes":
        logits[torch.rand(logits.shape, generator=generator) < 0.3] = -torch.inf
        logits[0, z[0]] = logits[-1, x0[-1]] = -torch.inf
        logits[:, 0] = 1.0
    if name == "absorbing":
        z = torch.full_like(z, states - 1)
        logits.scatter_(-1, x0[:, None], logits.gather(-1, x0[:, None]).nan_to_num(neginf=-3.0))
    weight = 0.1 + torch.rand(count, generator=generator).double()
    t = torch.full((count,), noise, dtype=torch.float64)
    return Rows(process, logits.to(dtype), State(z), t, x0, weight)


def kernel(rows: Rows, parameterization: Parameterization, objective: Objective) -> RowKernel:
    """The kernel that the process names."""
    softmax_is = parameterization.softmax_is
    assert softmax_is is not None
    arguments = softmax_is, rows.state, rows.t, rows.x0
    elbo = isinstance(objective, Elbo)
    ask = rows.process.nelbo_kernel if elbo else rows.process.cross_entropy_kernel
    found = ask(*arguments)
    assert found is not None
    return found


def exact(
    rows: Rows, parameterization: Parameterization, objective: Objective
) -> tuple[Tensor, Tensor]:
    """Losses and the gradient of their weighted sum, float64."""
    leaf = rows.logits.double().requires_grad_()
    prediction = parameterization(leaf, rows.process, rows.state, rows.t)
    loss = objective.rows(prediction, rows.x0)
    (grad,) = torch.autograd.grad(loss, leaf, rows.weight)
    return loss.detach(), grad


def call(made: RowKernel, rows: Rows, form: str) -> tuple[Tensor, Tensor]:
    """Losses and gradient, the latter over the logits or beside them."""
    logits, every = rows.logits.clone(), slice(0, len(rows.logits))
    grad = logits if form == "in place" else torch.full_like(logits, torch.nan)
    loss = made(logits, every, rows.weight, None if form == "loss only" else grad)
    if form != "in place":
        assert torch.equal(logits, rows.logits)
    return loss, grad


def check(rows: Rows, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Losses to 1e-5 of themselves; gradients to 2e-5 (16 bits: 3e-2) of the largest in the row.

    Beneath that: where a loss vanishes float64 autograd itself is off by 1e-12 (its gradient by
    1e-16), where a row is sure of a wrong token its gradient vanishes beside its loss, and float16
    ends at 6e-8.
    """
    (loss, grad), (true_loss, true_grad) = found, expected
    assert loss.dtype == torch.float32
    assert ((loss - true_loss).abs() <= 1e-5 * true_loss.abs() + 1e-11).all()
    gate = 2e-5 if grad.dtype == torch.float32 else 3e-2
    floor = 2e-7 * rows.weight * true_loss.abs() + (6e-8 if grad.dtype == torch.float16 else 1e-15)
    scale = true_grad.abs().amax(-1)
    assert ((grad - true_grad).abs() <= (gate * scale + floor)[:, None]).all()
