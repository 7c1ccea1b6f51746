"""Attention kernels on a GPU against SDPA in fp32, and the network on each of them."""

import pytest
import torch

from dlm.networks import DiT
from dlm.ops import attention as ops
from dlm.ops.attention import attention

pytestmark = pytest.mark.gpu


def documents(rows: int, length: int) -> torch.Tensor:
    ids = torch.arange(length).div(37, rounding_mode="floor").repeat(rows, 1)
    ids[:, -length // 8 :] = -1
    return ids.cuda()


def with_gradients(backend, dtype, ids, length):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, length, 4, 64, device="cuda").transpose(2, 3)
    inputs = [x.to(dtype).detach().requires_grad_() for x in (q, k, v)]
    out = attention(*inputs, documents=ids, backend=backend)
    return [x.float() for x in (out, *torch.autograd.grad(out.float().square().sum(), inputs))]


@pytest.mark.parametrize("length", [256, 200])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("backend", ["auto", "sdpa", "flash", "flex"])
def test_backends_agree(backend, packed, length):
    if backend == "flash" and ops._flash_kernels() is None:
        pytest.skip("flash-attn is absent")
    ids = documents(2, length) if packed else None
    exact = with_gradients("sdpa", torch.float32, ids, length)
    ours = with_gradients(backend, torch.bfloat16, ids, length)
    for mine, true in zip(ours, exact, strict=True):
        assert (mine - true).norm() < 0.02 * true.norm()


@pytest.mark.parametrize("compiled", [False, True])
def test_network_keeps_documents_apart(compiled):
    torch.manual_seed(0)
    network = DiT(50, 256, 128, 2, 2, time_conditioning=False).cuda()
    if compiled:
        network.compile_blocks()
    tokens, ids = torch.randint(50, (2, 256)).cuda(), documents(2, 256)
    changed = torch.where(ids == 1, (tokens + 1) % 50, tokens)
    with torch.autocast("cuda", torch.bfloat16):
        before, after = (network(x, documents=ids) for x in (tokens, changed))
    assert torch.equal(before[ids != 1], after[ids != 1])
    assert not torch.equal(before[ids == 1], after[ids == 1])
