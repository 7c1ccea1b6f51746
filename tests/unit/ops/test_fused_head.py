"""Head and loss in chunks: the numbers of the dense path, its memory avoided, its uses allowed."""

import importlib
import itertools
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dlm.objectives import CrossEntropy, Elbo
from dlm.ops.fused_head import fused_head
from dlm.parameterizations import LeaveOneOut
from dlm.processes.prediction import pick
from tests.conformance.registry import built, every, names
from tests.unit.ops.head_cases import (
    BATCH,
    LENGTH,
    SYMBOLS,
    Loss,
    assert_near,
    batch,
    dense,
    fused,
    gradients,
    model,
    process_of,
)

MODULE = importlib.import_module("dlm.ops.fused_head")
ROOT = Path(__file__).parents[3]
GROUPS = ("process", "parameterization", "objective")


@pytest.fixture
def compiled(monkeypatch):
    monkeypatch.setattr(MODULE, "COMPILE_FROM", 0)


def compare(process: str, parameterization: str, objective: str) -> None:
    """float32 in chunks against float64 with all logits.

    The posterior that untrained scores imply is negative in places and bends at the rounding of its
    dtype, so that there float32 and float64 are different functions: both in float64 then.
    """
    noise, meaning = process_of(process), built("parameterization", parameterization)
    loss = built("objective", objective)
    if (refusal := loss.refusal(noise)) is not None:
        pytest.skip(refusal)
    data = batch(noise, objective=loss)
    denoiser = model(noise, meaning)
    if parameterization == "score" and objective != "elbo":
        denoiser = denoiser.double()
    mine = fused(denoiser, loss, data)
    found = gradients(denoiser, mine)
    exact = dense(denoiser.double(), loss, data)
    assert torch.allclose(mine.double(), exact, rtol=1e-5)
    assert_near(found, gradients(denoiser, exact), 5e-6)


@every("process")
@every("parameterization")
@every("objective")
def test_float32_is_near_the_dense_path_in_float64(process, parameterization, objective):
    compare(process, parameterization, objective)


@pytest.mark.filterwarnings("error:the loss runs eagerly")
@pytest.mark.parametrize("case", [("uniform", "elbo"), ("absorbing", "cross_entropy")], ids=str)
def test_compiled_is_near_the_dense_path(case, compiled):
    compare(case[0], "leave_one_out", case[1])


INDUCTOR_FAILS = [
    ("uniform", "leave_one_out", "score_entropy"),
    ("lifted_uniform", "leave_one_out", "score_entropy"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("error:the loss runs eagerly")
@pytest.mark.parametrize("case", list(itertools.product(*map(names, GROUPS))), ids=str)
def test_every_combination_compiles_and_is_near_the_dense_path(case, compiled, request):
    if case in INDUCTOR_FAILS:
        reason = "KeyError in the Inductor of torch 2.13; the loss warns and runs eagerly"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    compare(*case)


@pytest.mark.filterwarnings("error:the loss runs eagerly")
def test_one_compilation_serves_every_number_of_rows(compiled):
    noise = process_of("uniform")
    denoiser = model(noise, LeaveOneOut())
    fused(denoiser, Elbo(), batch(noise))
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in (1, 3, 7):
            fused(denoiser, Elbo(), batch(noise, rows))


def test_where_nothing_compiles_one_warning_says_so_and_the_numbers_stay(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("inductor raised:\nno C++ compiler\n\nin /bin")

    noise = process_of("uniform", SYMBOLS + 1)  # a row loss that nothing compiled before
    denoiser, data = model(noise, LeaveOneOut()), batch(noise)
    eager = gradients(denoiser, fused(denoiser, Elbo(), data))
    monkeypatch.setattr(MODULE, "COMPILE_FROM", 0)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match=r"eagerly.* failed: inductor raised: no C.. compiler$"):
        assert_near(gradients(denoiser, fused(denoiser, Elbo(), data)), eager, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(denoiser, Elbo(), data)


@every("process")
def test_bfloat16_stays_close(process):
    noise = process_of(process)
    denoiser, data = model(noise, LeaveOneOut()), batch(noise)
    exact = gradients(denoiser, fused(denoiser, Elbo(), data))
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused(denoiser, Elbo(), data)
    assert_near(gradients(denoiser, loss), exact, 3e-2)


class Largest(TorchDispatchMode):
    """The most entries of any tensor that an operation returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(each, torch.Tensor):
                self.entries = max(self.entries, each.numel())
        return out


@every("process")
@pytest.mark.parametrize("objective", [Elbo(), CrossEntropy()], ids=repr)
def test_logits_of_the_batch_never_exist(process, objective, monkeypatch):
    """16 rows of logits at a time: nothing else is larger."""
    noise = process_of(process)
    monkeypatch.setattr(MODULE, "_sizes", lambda *_: MODULE._Sizes(16, 8, 64))
    denoiser, data = model(noise, LeaveOneOut()), batch(noise)
    with Largest() as ours:
        gradients(denoiser, fused(denoiser, objective, data))
    with Largest() as theirs:
        gradients(denoiser, dense(denoiser, objective, data))
    assert theirs.entries == BATCH * LENGTH * noise.num_states
    assert ours.entries == 16 * noise.num_states


def test_a_tied_head_gets_both_gradients():
    noise = process_of("uniform")
    denoiser, data = model(noise, LeaveOneOut(), tied=True), batch(noise)
    found = gradients(denoiser, fused(denoiser, Elbo(), data))
    exact = gradients(denoiser, dense(denoiser, Elbo(), data))
    assert_near(found, exact, 5e-6)


def test_gradients_accumulate():
    noise = process_of("uniform")
    denoiser, data = model(noise, LeaveOneOut()), batch(noise)
    once = gradients(denoiser, fused(denoiser, Elbo(), data))
    fused(denoiser, Elbo(), data).backward()
    twice = {name: p.grad for name, p in denoiser.named_parameters()}
    assert_near(twice, {name: 2 * gradient for name, gradient in once.items()}, 1e-7)


@pytest.mark.parametrize("frozen", ["head", "embedding"])
def test_what_is_frozen_costs_no_gradient(frozen, monkeypatch):
    noise = process_of("uniform")
    denoiser, data = model(noise, LeaveOneOut()), batch(noise)
    exact = gradients(denoiser, fused(denoiser, Elbo(), data))
    getattr(denoiser.backbone, frozen).requires_grad_(False)
    denoiser.zero_grad()
    loss = fused(denoiser, Elbo(), data)
    assert (loss.grad_fn.gradients[0 if frozen == "embedding" else 1]) is None
    loss.backward()
    found = {n: p.grad for n, p in denoiser.named_parameters() if p.grad is not None}
    assert_near(found, {n: g for n, g in exact.items() if frozen not in n}, 1e-7)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("part", ["body", "everything"])
def test_inside_activation_checkpointing(reentrant, part, request):
    if not reentrant:  # there hooks on saved tensors are active
        request.getfixturevalue("compiled")
    noise = process_of("uniform")
    denoiser, data = model(noise, LeaveOneOut()), batch(noise)
    exact = gradients(denoiser, fused(denoiser, Elbo(), data))
    body = denoiser.backbone.forward
    anchor = torch.zeros((), requires_grad=True)  # reentrant: some input must want a gradient

    def again(tokens, **known):
        return checkpoint(lambda x: body(tokens, **known) + 0 * x, anchor, use_reentrant=reentrant)

    if part == "body":
        denoiser.backbone.forward = again
        loss = fused(denoiser, Elbo(), data)
    else:
        loss = checkpoint(
            lambda x: fused(denoiser, Elbo(), data) + 0 * x, anchor, use_reentrant=reentrant
        )
    assert_near(gradients(denoiser, loss), exact, 1e-6)


def test_an_outer_compile_neither_unrolls_the_chunks_nor_changes_a_number():
    def nodes(chunk: int) -> tuple[int, torch.Tensor]:
        sizes = []

        def backend(graph, _):
            sizes.append(len(graph.graph.nodes))
            return graph

        def loss(hidden, weight):
            factors = torch.ones(40)
            return fused_head(hidden.sin(), weight, rows, factors, target, chunk=chunk)[0].cos()

        inputs = [x.clone().requires_grad_() for x in (hidden, weight)]
        torch.compile(loss, backend=backend)(*inputs).backward()
        return sum(sizes), inputs[1].grad

    rows = lambda logits, target: -pick(logits.log_softmax(-1), target)  # noqa: E731
    torch.manual_seed(0)
    hidden, weight, target = torch.randn(40, 8), torch.randn(30, 8), torch.randint(0, 30, (40,))
    (many, ours), (one, whole) = nodes(4), nodes(40)
    assert many == one > 0
    assert torch.allclose(ours, whole, rtol=1e-4, atol=1e-6)


def test_compiled_blocks_feed_it():
    noise = process_of("uniform")
    denoiser, data = model(noise, LeaveOneOut()), batch(noise)
    exact = gradients(denoiser, fused(denoiser, CrossEntropy(), data))
    denoiser.backbone.embedding.compile(backend="aot_eager")
    assert_near(gradients(denoiser, fused(denoiser, CrossEntropy(), data)), exact, 1e-6)


def test_a_loss_module_in_ddp_and_fsdp_on_two_processes():
    command = [sys.executable, "-m", "tests.unit.ops.head_two_processes"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["ddp", "fsdp"]


def test_the_loss_is_a_module_like_any_other():
    noise = process_of("absorbing")
    wrapped = Loss(model(noise, LeaveOneOut()), Elbo())
    assert (
        gradients(wrapped, wrapped(*batch(noise))).keys() == dict(wrapped.named_parameters()).keys()
    )
