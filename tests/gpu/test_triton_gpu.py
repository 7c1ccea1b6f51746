"""The Triton kernels on a GPU against float64 autograd, and the training loss with and without."""

import pytest
import torch

from dlm import Denoiser
from dlm.networks import DiT
from dlm.ops import fused_head, triton_rows
from dlm.random import Key
from tests.toys import absorbing, uniform
from tests.unit.ops.triton_cases import (
    DTYPES,
    FITTING,
    KINDS,
    NOISE,
    SIZES,
    call,
    check,
    exact,
    kernel,
    make,
)

pytestmark = pytest.mark.gpu
LENGTH, BATCH, SYMBOLS = 64, 8, 1000


def compare(case, states, noise, kind, dtype):
    process, *how = case
    rows = make(process, states, noise, kind, dtype)
    assert triton_rows.pays(torch.device("cuda"), dtype)
    found = call(kernel(rows.cuda(), *how), rows.cuda(), "in place")
    check(rows, (found[0].cpu(), found[1].cpu()), exact(rows, *how))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("states", SIZES)
@pytest.mark.parametrize("case", FITTING, ids=repr)
def test_kernel_equals_autograd(case, states, noise, kind):
    compare(case, states, noise, kind, torch.float32)


@pytest.mark.parametrize("states", SIZES)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", FITTING, ids=repr)
def test_sixteen_bits(case, dtype, states):
    compare(case, states, 0.5, "even", dtype)


@pytest.mark.parametrize("case", FITTING, ids=repr)
def test_nothing_of_the_size_of_the_logits_is_allocated(case):
    process, *how = case
    rows = make(process, 50_258, 0.5, "even", torch.float32).cuda()
    made, logits = kernel(rows, *how), rows.logits.repeat(100, 1)
    many = slice(None, len(rows.logits))
    made(rows.logits, many, rows.weight, rows.logits)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made(logits[: len(rows.logits)], many, rows.weight, logits[: len(rows.logits)])
    assert torch.cuda.max_memory_allocated() - before < logits[0].nbytes


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("case", FITTING, ids=repr)
def test_training_with_and_without(case, bf16, monkeypatch):
    name, parameterization, objective = case
    process = absorbing(symbols=SYMBOLS) if name == "absorbing" else uniform(symbols=SYMBOLS)
    torch.manual_seed(0)
    timed = process.time_conditioned
    network = DiT(process.num_states, LENGTH, 64, 2, 2, time_conditioning=timed)
    torch.nn.init.normal_(network.head.weight, std=0.2)
    denoiser = Denoiser(network, process, parameterization).cuda()
    rows = torch.arange(BATCH, device="cuda")
    x0 = (Key(1, rows).uniform(LENGTH) * SYMBOLS).long()
    t = Key(2, rows).uniform().clamp(min=0.05)
    state = process.corrupt(x0, t[:, None], key=Key(0, rows))
    results = []
    for pays in (triton_rows.pays, lambda device, dtype: False):
        monkeypatch.setattr(fused_head, "pays", pays)
        denoiser.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            loss = objective(denoiser, x0, state, t, torch.ones_like(x0)).loss
        loss.backward()
        grads = [p.grad.flatten() for p in denoiser.parameters() if p.grad is not None]
        results.append((loss.detach(), torch.cat(grads)))
    (loss, grads), (other_loss, other_grads) = results
    assert torch.allclose(loss, other_loss, rtol=1e-4 if bf16 else 1e-5)
    assert (grads - other_grads).norm() < (3e-2 if bf16 else 1e-4) * other_grads.norm()
