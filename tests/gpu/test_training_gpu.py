"""What only a GPU can show: the same numbers as on the CPU, for draws, losses and gradients."""

import pytest
import torch

from dlm import Denoiser
from dlm.networks import DiT
from dlm.objectives import Elbo
from dlm.parameterizations import LeaveOneOut
from dlm.random import Key, sample_categorical
from dlm.samplers import Ancestral, EvenGrid, GridSampler
from tests.toys import processes

pytestmark = pytest.mark.gpu
LENGTH, BATCH, SYMBOLS = 16, 4, 300


def model(process):
    torch.manual_seed(0)
    net = DiT(
        process.num_states,
        length=LENGTH,
        width=32,
        depth=2,
        heads=2,
        time_conditioning=process.time_conditioned,
        noise_conditioning=process.noise_conditioned,
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Denoiser(net, process, LeaveOneOut())


def test_draws_are_the_same_numbers():
    rows = torch.arange(5)
    assert torch.equal(Key(3, rows.cuda()).uniform(7).cpu(), Key(3, rows).uniform(7))
    log_probs = torch.randn(5, 1000, dtype=torch.float64).log_softmax(-1)
    u = Key(3, rows).uniform()
    drawn = sample_categorical(log_probs.cuda(), u.cuda()).cpu()
    assert torch.equal(drawn, sample_categorical(log_probs, u))


@pytest.mark.parametrize("process", processes(symbols=SYMBOLS), ids=repr)
def test_loss_gradient_and_samples_agree_with_the_cpu(process):
    results = []
    for device in ("cpu", "cuda"):
        denoiser = model(process).to(device).double()
        rows = torch.arange(BATCH, device=device)
        x0 = (Key(1, rows).uniform(LENGTH) * SYMBOLS).long()
        t = Key(2, rows).uniform().clamp(min=0.05)
        state = process.corrupt(x0, t[:, None], key=Key(0, rows))
        loss = Elbo()(denoiser, x0, state, t, torch.ones_like(x0, dtype=torch.bool)).loss
        loss.backward()
        sampler = GridSampler(Ancestral(), EvenGrid(), steps=8)
        tokens = sampler(denoiser, (BATCH, LENGTH), key=Key(5, rows)).tokens
        grads = torch.cat([p.grad.flatten() for p in denoiser.parameters()])
        results.append((loss.detach().cpu(), grads.cpu(), tokens.cpu()))
    (loss, grads, tokens), (other_loss, other_grads, other_tokens) = results
    assert torch.allclose(loss, other_loss, rtol=1e-8)
    # the level is embedded in float32, whose sines differ between devices
    assert torch.allclose(grads, other_grads, rtol=1e-4, atol=1e-6 * grads.abs().max())
    assert torch.equal(tokens, other_tokens)
