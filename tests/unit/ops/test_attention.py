"""Every backend against a loop-free reference in float64, and the choice between them."""

import itertools

import pytest
import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.ops import attention as ops
from dlm.ops.attention import Flash, Sdpa, attention, plan

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, -1, -1, -1], [0] * 5 + [1] * 7])


def qkv(rows: int = 2, length: int = 12, head_dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, rows, length, 3, head_dim)
    q, k, v = torch.randn(shape, generator=generator, dtype=torch.float64).transpose(2, 3)
    return q, k, v


def reference(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    if documents is not None:
        apart = documents[:, None, :, None] != documents[:, None, None, :]
        scores = scores.masked_fill(apart, -torch.inf)
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


def with_gradients(f, *inputs: Tensor) -> list[Tensor]:
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    out = f(*inputs)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


def ragged(q: Tensor, k: Tensor, v: Tensor, **bounds) -> Tensor:
    """What flash_attn_varlen_func computes: documents one after the other, [positions, H, D]."""
    assert bounds["cu_seqlens_q"] is bounds["cu_seqlens_k"]
    edges = bounds["cu_seqlens_q"].tolist()
    parts = []
    for a, b in itertools.pairwise(edges):
        assert 0 < b - a <= bounds["max_seqlen_q"] == bounds["max_seqlen_k"]
        one = (x[a:b].transpose(0, 1)[None] for x in (q, k, v))
        parts.append(reference(*one, None)[0].transpose(0, 1))
    return torch.cat(parts)


def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What flash_attn_func computes, [B, L, H, D]."""
    return reference(*(x.transpose(1, 2) for x in (q, k, v)), None).transpose(1, 2)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("backend", ["auto", "sdpa", "flex"])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
@torch.no_grad()
def test_matches_the_formula(backend, documents):
    out = attention(*qkv(), documents=documents, backend=backend)
    torch.testing.assert_close(out, reference(*qkv(), documents), atol=1e-12, rtol=0)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
def test_gradients_match_the_formula(documents):
    ours = with_gradients(lambda *x: attention(*x, documents=documents), *qkv())
    theirs = with_gradients(lambda *x: reference(*x, documents), *qkv())
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
@pytest.mark.parametrize("longest", [1024, 4], ids=["plain", "upcast"])
def test_bfloat16_on_cpu_stays_near_the_formula(documents, longest, monkeypatch):
    monkeypatch.setattr(ops, "PLAIN_LENGTH", longest)
    q, k, v = (x.bfloat16() for x in qkv())
    with torch.autocast("cpu", torch.bfloat16):
        ours = with_gradients(lambda *x: attention(*x, documents=documents), q, k, v)
    exact = (x.double() for x in (q, k, v))
    theirs = with_gradients(lambda *x: reference(*x, documents), *exact)
    for mine, true in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - true).norm() < 0.015 * true.norm()


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
def test_ragged_layout_of_flash_attention(documents):
    bounds = None if documents is None else ops._bounds(documents)[0]
    out = Flash(whole, ragged, bounds)(*qkv())
    torch.testing.assert_close(out, reference(*qkv(), documents), atol=1e-12, rtol=0)


def test_bounds_separate_rows_and_notice_documents_in_pieces():
    bounds, in_one_piece = ops._bounds(torch.tensor([[0, 0, 1], [1, 1, 1], [2, 1, -1]]))
    assert bounds.tolist() == [0, 2, 3, 6, 7, 8, 9]
    assert bounds.dtype == torch.int32
    assert in_one_piece
    assert not ops._bounds(torch.tensor([[0, 1, 0]]))[1]


def choose(backend="auto", device="cuda", dtype=torch.bfloat16, head_dim=64, documents=DOCUMENTS):
    device = torch.device(device)
    return plan(documents, backend, device=device, dtype=dtype, head_dim=head_dim)


def test_auto_takes_what_is_present_and_right(monkeypatch):
    monkeypatch.setattr(ops, "_flash_kernels", lambda: (whole, ragged))
    assert isinstance(choose(), Flash)
    assert isinstance(choose(documents=None), Sdpa)
    assert isinstance(choose(dtype=torch.float32), Sdpa)
    assert isinstance(choose(device="cpu"), Sdpa)
    monkeypatch.setattr(ops, "_has_triton", lambda: False)
    assert isinstance(choose(documents=torch.tensor([[0, 1, 0]])), Sdpa)
    assert isinstance(choose(head_dim=512), Sdpa)
    monkeypatch.setattr(ops, "_flash_kernels", lambda: None)
    assert isinstance(choose(), Sdpa)


def test_auto_prefers_flex_to_a_dense_mask_where_it_compiles(monkeypatch):
    monkeypatch.setattr(ops, "_flash_kernels", lambda: None)
    monkeypatch.setattr(ops, "_has_triton", lambda: True)
    monkeypatch.setattr(ops, "_flex_kernel", lambda *, compiled: f"compiled={compiled}")
    chosen = choose()
    assert isinstance(chosen, ops.Flex)
    assert chosen.kernel == "compiled=True"
    assert isinstance(choose(head_dim=8), Sdpa)


def test_an_absent_backend_is_one_sentence(monkeypatch):
    monkeypatch.setattr(ops, "_flash_kernels", lambda: None)
    with pytest.raises(UserError, match="needs the package flash-attn"):
        choose("flash")


def test_a_backend_that_does_not_fit_is_one_sentence(monkeypatch):
    monkeypatch.setattr(ops, "_flash_kernels", lambda: (whole, ragged))
    assert isinstance(choose("flash", documents=None), Flash)
    with pytest.raises(UserError, match="needs CUDA"):
        choose("flash", device="cpu")
    with pytest.raises(UserError, match="in one piece"):
        choose("flash", documents=torch.tensor([[0, 1, 0]]))
    with pytest.raises(UserError, match="flex trains on CUDA only, got cpu"):
        choose("flex", device="cpu")
    with pytest.raises(UserError, match="must be one of auto, sdpa, flash, flex, got 'xformers'"):
        choose("xformers")
