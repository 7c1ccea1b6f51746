"""Objectives: chunked equals dense, in value and gradient; sums ignore what they should."""

import itertools

import pytest
import torch
from torch import nn

from dlm import Context, Denoiser, Prediction
from dlm.objectives import CrossEntropy, Elbo
from dlm.ops.fused_head import fused_head
from dlm.parameterizations import Denoising, LeaveOneOut, Score
from dlm.processes.prediction import pick
from dlm.random import Key
from tests.toys import double, processes

BATCH, LENGTH, WIDTH, SYMBOLS = 3, 7, 8, 11
PARAMETERIZATIONS = [Denoising(), LeaveOneOut(), Score()]
CASES = list(
    itertools.product(processes(symbols=SYMBOLS), PARAMETERIZATIONS, [Elbo(), CrossEntropy()])
)


class TinyBackbone(nn.Module):
    """An embedding, seen through its neighbours, and a head."""

    def __init__(self, process):
        super().__init__()
        self.time_conditioning, self.noise_conditioning = (
            process.time_conditioned,
            process.noise_conditioned,
        )
        self.length = LENGTH
        self.embedding = nn.Embedding(process.num_states, WIDTH)
        self.head = nn.Linear(WIDTH, process.num_states, bias=False)

    def forward(self, tokens, *, level=None, documents=None, noise=None):
        x = self.embedding(tokens)
        x = x + x.roll(1, 1) + x.roll(-1, 1)
        return torch.tanh(x if level is None else x + level[:, None, None] / 10)


def setting(process, parameterization, dtype=torch.float64):
    torch.manual_seed(0)
    denoiser = Denoiser(TinyBackbone(process), process, parameterization).to(dtype)
    x0 = torch.randint(0, SYMBOLS, (BATCH, LENGTH))
    t = double([0.2, 0.5, 0.9])
    state = process.corrupt(x0, t[:, None], key=Key(0, torch.arange(BATCH)))
    weight = torch.rand(BATCH, LENGTH).double()
    weight[0, :3] = 0.0
    return denoiser, x0, t, state, weight


def dense(objective, denoiser, x0, state, t, weight):
    """The same sum the usual way: logits of everything, autograd through all of it."""
    prediction = denoiser(state, t)
    loss = objective.rows(prediction, x0)
    counted = denoiser.process.active(state)
    return (torch.where(counted, loss, 0.0) * weight).sum(-1)


@pytest.mark.parametrize(("process", "parameterization", "objective"), CASES, ids=repr)
def test_chunked_equals_dense(process, parameterization, objective):
    denoiser, x0, t, state, weight = setting(process, parameterization)
    expected = dense(objective, denoiser, x0, state, t, weight)
    expected.sum().backward()
    gradients = [p.grad.clone() for p in denoiser.parameters()]
    denoiser.zero_grad()
    result = objective(denoiser, x0, state, t, weight)
    (3 * result.loss).backward()
    assert torch.allclose(result.loss.detach(), expected.sum(), rtol=1e-12)
    assert torch.allclose(result.rows, expected.detach(), rtol=1e-12)
    for parameter, gradient in zip(denoiser.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, 3 * gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("process", processes(symbols=SYMBOLS), ids=repr)
def test_where_gives_the_same_rows(process):
    denoiser, _, t, state, _ = setting(process, LeaveOneOut())
    where = torch.rand(BATCH, LENGTH) < 0.4
    everything, some = denoiser(state, t), denoiser(state, t, where=where, context=Context())
    assert torch.allclose(some.log_denoiser, everything.log_denoiser[where], atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunk_size_changes_nothing(chunk):
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 4).double(), torch.randn(6, 4).double().requires_grad_()
    target, factors = torch.randint(0, 6, (10,)), torch.rand(10).double()
    row_loss = lambda logits, target: -pick(logits.log_softmax(-1), target)  # noqa: E731
    total, rows = fused_head(hidden, weight, row_loss, factors, target, chunk=chunk)
    (grad,) = torch.autograd.grad(total, weight)
    expected = -pick((hidden @ weight.T).log_softmax(-1), target)
    (reference,) = torch.autograd.grad((expected * factors).sum(), weight)
    assert torch.allclose(rows, expected.detach(), rtol=1e-12)
    assert torch.allclose(grad, reference, rtol=1e-12)


def test_no_rows_still_reach_every_parameter():
    """A fully unmasked batch: the loss is zero, and DDP finds a gradient for each parameter."""
    process = processes(symbols=SYMBOLS)[0]
    denoiser, x0, t, state, _ = setting(process, LeaveOneOut())
    result = Elbo()(denoiser, x0, process.pin(state, x0, torch.ones_like(x0).bool()), t, x0 >= 0)
    result.loss.backward()
    assert result.loss == 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in denoiser.parameters())


def test_validation_computes_no_gradient_and_training_none_twice():
    denoiser, x0, t, state, weight = setting(processes(symbols=SYMBOLS)[1], LeaveOneOut())
    with torch.no_grad():
        assert not Elbo()(denoiser, x0, state, t, weight).loss.requires_grad
    loss = Elbo()(denoiser, x0, state, t, weight).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        loss.backward()


@pytest.mark.parametrize("process", processes(symbols=SYMBOLS), ids=repr)
def test_bfloat16_autocast_stays_close(process):
    denoiser, x0, t, state, weight = setting(process, LeaveOneOut(), torch.float32)
    exact = Elbo()(denoiser, x0, state, t, weight).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = Elbo()(denoiser, x0, state, t, weight).loss
    rounded.backward()
    assert rounded.dtype == torch.float64
    assert torch.allclose(rounded, exact, rtol=3e-2)
    assert all(p.grad.dtype == torch.float32 for p in denoiser.parameters())


@pytest.mark.parametrize("process", processes(symbols=SYMBOLS), ids=repr)
def test_the_minimiser_of_cross_entropy_is_the_denoiser_whatever_the_currency(process):
    """One posterior in three currencies has one cross-entropy and one bound."""
    denoiser, x0, t, state, _ = setting(process, LeaveOneOut())
    base = denoiser(state, t)
    made = [
        base,
        Prediction(process, state, base.t, log_denoiser=base.log_denoiser),
        Prediction(process, state, base.t, log_ratios=base.log_ratios),
    ]
    active = process.active(state)
    for objective in (CrossEntropy(), Elbo()):
        losses = [objective.rows(each, x0)[active] for each in made]
        assert torch.allclose(losses[1], losses[0], rtol=1e-9)
        assert torch.allclose(losses[2], losses[0], rtol=1e-9)
