"""Kernels and twins against float64 autograd of the process's own formulas.

There need not be a GPU: Triton's interpreter runs the kernels on the CPU, in a process of its own
because the choice is made when Triton is imported; and its compiler compiles them for GPUs that are
not there.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec

import pytest
import torch

from dlm import Denoiser, State
from dlm.networks import DiT
from dlm.objectives import CrossEntropy, Elbo
from dlm.ops import fused_head, triton_rows, triton_twins
from dlm.parameterizations import Score
from dlm.random import Key
from tests.toys import absorbing, double, uniform
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

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
one_of_each = pytest.mark.parametrize(
    "case", [FITTING[0], FITTING[-1]], ids=["masked cross-entropy", "uniform bound"]
)


def interpret_triton() -> None:
    """Send every RowKernel of this process to the kernels."""
    from dlm.ops import triton_kernels

    triton_rows._implementation = lambda logits: triton_kernels


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=interpret_triton
    ) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()  # starts it
        yield pool


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("states", SIZES)
@one_of_each
def test_twin_equals_autograd(case, states, noise, kind):
    process, *how = case
    rows = make(process, states, noise, kind, torch.float32)
    check(rows, call(kernel(rows, *how), rows, "in place"), exact(rows, *how))


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("states", SIZES)
@one_of_each
def test_kernel_equals_autograd_and_twin(case, states, noise, kind, interpreter):
    process, *how = case
    rows = make(process, states, noise, kind, torch.float32)
    made = kernel(rows, *how)
    found = interpreter.submit(call, made, rows, "in place").result()
    check(rows, found, exact(rows, *how))
    twin = call(made, rows, "in place")
    check(rows, found, (twin[0].double(), twin[1].double()))


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@one_of_each
def test_sixteen_bits(case, dtype, interpreter):
    process, *how = case
    rows = make(process, 257, 0.5, "even", dtype)
    made, expected = kernel(rows, *how), exact(rows, *how)
    check(rows, call(made, rows, "in place"), expected)
    check(rows, interpreter.submit(call, made, rows, "in place").result(), expected)


@needs_triton
@pytest.mark.parametrize("case", FITTING, ids=repr)
def test_the_gradient_goes_where_it_is_asked_to(case, interpreter):
    process, *how = case
    rows = make(process, 257, 0.5, "even", torch.float32)
    made = kernel(rows, *how)
    for compute in (call, lambda *args: interpreter.submit(call, *args).result()):
        in_place, beside, neither = (
            compute(made, rows, form) for form in ("in place", "beside", "loss only")
        )
        check(rows, in_place, exact(rows, *how))
        assert torch.equal(in_place[0], beside[0])
        assert torch.equal(in_place[1], beside[1])
        assert torch.equal(in_place[0], neither[0])
        assert neither[1].isnan().all()


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["cross_entropy_kernel", "uniform_bound_kernel"])
def test_compiles_for_gpus_that_are_not_here(name, dtype, capability, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dlm.ops import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"logits_ptr": dtype, "grad_ptr": dtype, "z_ptr": "i64", "x0_ptr": "i64"}
    types |= {"log_e_ptr": "fp64", "rate_ptr": "fp64", "weight_ptr": "fp64", "loss_ptr": "fp32"}
    constants = {"DIFFERENTIATE": True, "BLOCK": 2048}
    function = getattr(triton_kernels, name)
    signature = {
        argument: "constexpr"
        if argument in constants
        else f"*{types[argument]}"
        if argument in types
        else "i32"
        for argument in function.arg_names
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    assert triton.compile(source, target=target, options={"num_warps": 8}).asm["cubin"]


@one_of_each
def test_some_of_the_rows(case):
    process, *how = case
    rows = make(process, 257, 0.5, "even", torch.float32)
    rows = rows._replace(t=torch.linspace(0.1, 0.9, len(rows.t), dtype=torch.float64))
    made, part = kernel(rows, *how), slice(2, 5)
    whole, logits = call(made, rows, "in place"), rows.logits[part].clone()
    loss = made(logits, part, rows.weight[part], logits)
    assert torch.equal(loss, whole[0][part])
    assert torch.equal(logits, whole[1][part])


def test_no_other_pair_of_process_and_parameterization_names_a_kernel():
    rows = make("uniform", 5, 0.5, "even", torch.float32)
    arguments = rows.state, rows.t, rows.x0
    assert rows.process.nelbo_kernel("denoiser", *arguments) is None
    assert rows.process.cross_entropy_kernel("loo", *arguments) is None


def test_kernels_run_on_cuda_and_up_to_32_bits(monkeypatch):
    monkeypatch.setattr(triton_rows, "_kernels", lambda: sys)
    cuda = torch.device("cuda")
    assert all(triton_rows.pays(cuda, dtype) for dtype in DTYPES)
    assert not triton_rows.pays(cuda, torch.float64)
    assert not triton_rows.pays(torch.device("cpu"), torch.float32)
    assert triton_rows._implementation(torch.zeros(1)) is triton_twins
    monkeypatch.setattr(triton_rows, "_kernels", lambda: None)
    assert not triton_rows.pays(cuda, torch.float32)


def test_importing_the_package_leaves_triton_alone():
    code = (
        "import sys, dlm, dlm.ops.triton_rows\n"
        "[getattr(dlm, name) for name in dlm.__all__]\n"
        "print('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("case", FITTING, ids=repr)
def test_the_driver_takes_the_kernel_where_it_pays(case, monkeypatch):
    """Here the twin stands for the kernel: same loss and gradients, training and validating."""
    name, parameterization, objective = case
    process = absorbing(symbols=300) if name == "absorbing" else uniform(symbols=300)
    torch.manual_seed(0)
    network = DiT(process.num_states, 16, 32, 1, 2, time_conditioning=process.time_conditioned)
    torch.nn.init.normal_(network.head.weight, std=0.3)
    denoiser = Denoiser(network, process, parameterization)
    x0, t = torch.randint(300, (4, 16)), double([0.1, 0.3, 0.6, 0.9])
    state = process.corrupt(x0, t[:, None], key=Key(0, torch.arange(4)))
    weight, calls = torch.rand(4, 16).double(), []

    def train() -> tuple[torch.Tensor, torch.Tensor]:
        loss = objective(denoiser, x0, state, t, weight).loss
        grads = torch.autograd.grad(loss, list(denoiser.parameters()), allow_unused=True)
        return loss.detach(), torch.cat([g.flatten() for g in grads if g is not None])

    expected = train()
    for function in ("cross_entropy", "uniform_bound"):
        twin = getattr(triton_twins, function)
        count = lambda *args, twin=twin: calls.append(args[-1]) or twin(*args)  # noqa: E731
        monkeypatch.setattr(triton_twins, function, count)
    assert torch.equal(train()[0], expected[0])
    assert not calls
    monkeypatch.setattr(fused_head, "pays", lambda device, dtype: True)
    loss, grads = train()
    assert len(calls) == 1
    torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
    assert (grads - expected[1]).norm() < 1e-5 * expected[1].norm()
    with torch.no_grad():
        assert torch.equal(objective(denoiser, x0, state, t, weight).loss, loss)
    assert len(calls) == 2
    assert calls[-1] is None


@pytest.mark.parametrize("objective", [Elbo(), CrossEntropy()], ids=repr)
def test_a_score_has_no_kernel(objective):
    """Its logits are not those of a posterior, whatever the process names."""
    process = absorbing(symbols=7)
    denoiser = Denoiser(DiT(8, 4, 32, 1, 2, time_conditioning=False), process, Score())
    z, x0, t = torch.full((3,), 7), torch.arange(3), double([0.1, 0.5, 0.9])
    assert objective.kernel(denoiser, State(z), t, x0) is None
