"""Extremes stay finite: t -> 0 and 1, one-hot and -inf inputs, K = 2 and 50,258."""

import pytest
import torch

from dlm import Absorbing, Prediction, State, Uniform, UserError
from dlm.lab import exact
from dlm.processes import Hybrid
from dlm.random import Key
from dlm.schedules import Linear
from tests.toys import double, lifted, processes

SIZES = [2, 50_257]
CASES = [p for size in SIZES for p in processes(symbols=size)]


def logits_of(process, kind):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, process.num_states, generator=generator)
    if kind == "one-hot":
        logits = torch.full_like(logits, -torch.inf)
        logits[:, 0] = 0.0
    if process.mask_id is not None:
        logits[:, process.mask_id] = -torch.inf
    return logits.log_softmax(-1)


def state_of(process, z):
    """Every position may be noise."""
    return State(z, z if process.noise_conditioned else None)


@pytest.mark.parametrize("process", CASES, ids=lambda p: f"{type(p).__name__}-{p.num_states}")
@pytest.mark.parametrize("t", [0.0, 1e-6, 0.5, 1 - 1e-6, 1.0])
@pytest.mark.parametrize("kind", ["random", "one-hot"])
def test_no_nan_anywhere(process, t, kind):
    log_loo = logits_of(process, kind)
    z = torch.tensor([0, 1, process.num_states - 1, 0])
    state, x0, times = state_of(process, z), torch.tensor([0, 0, 1, 1]), double([t] * 4)
    prediction = Prediction(process, state, times, log_loo=log_loo)
    laws = [prediction.log_denoiser]
    if t > 0:
        laws.append(process.posterior(prediction, double(0.0)))
    for log_probs in laws:
        assert torch.allclose(log_probs.exp().sum(-1), torch.ones(4), atol=1e-5)
    back = process.to_loo(prediction.log_denoiser, state, times)
    assert not back.isnan().any()
    if kind == "random" and t > 0:
        loss = process.nelbo(prediction, x0)
        assert loss.isfinite().all()
        assert (loss >= -1e-3).all()


@pytest.mark.parametrize("t", [1e-5, 1e-3, 0.3, 0.9, 1 - 1e-4])
@pytest.mark.parametrize("process", CASES, ids=lambda p: f"{type(p).__name__}-{p.num_states}")
@pytest.mark.parametrize("ratios", [False, True])
def test_float32_agrees_with_float64_in_value_and_gradient(process, t, ratios):
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(6, process.num_states, generator=generator)
    if process.mask_id is not None:
        logits[:, process.mask_id] = -torch.inf
        z = torch.full((6,), process.mask_id)
    else:
        z = torch.tensor([0, 0, 1, 1, 0, 1])
    if process.mask_id is not None and process.active(State(z * 0)).all():
        z[:3] = torch.tensor([0, 0, 1])  # hybrid noise: not every noisy token is MASK
    x0 = torch.tensor([0, 1, 1, 0, 0, 1])

    def run(dtype):
        leaf = logits.to(dtype).requires_grad_()
        state, times = state_of(process, z), double([t] * 6)
        if ratios:
            prediction = process.from_score(leaf, state, times)
        else:
            prediction = Prediction(process, state, times, log_loo=leaf.log_softmax(-1))
        loss = process.nelbo(prediction, x0)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach().double(), torch.nan_to_num(grad.double())

    loss32, grad32 = run(torch.float32)
    loss64, grad64 = run(torch.float64)
    assert torch.allclose(loss32, loss64, rtol=2e-5, atol=1e-5)
    scale = grad64.abs().amax(-1, keepdim=True)
    # Near t = 1 the whole gradient vanishes with alpha: there its absolute error is what counts. A
    # posterior of 0.999 at x0 leaves 1e-4 of its gradient to the rounding of float32.
    assert ((grad32 - grad64).abs() <= 1e-4 * scale + 3e-7).all()


def test_at_full_noise_the_posteriors_coincide_and_at_none_the_denoiser_is_the_token():
    process = Uniform(5, Linear())
    log_loo = torch.randn(3, 5).log_softmax(-1)
    state = State(torch.tensor([0, 2, 4]))
    assert torch.allclose(
        process.to_denoiser(log_loo, state, double([1.0] * 3)), log_loo, atol=1e-6
    )
    at_zero = process.to_denoiser(log_loo, state, double([0.0] * 3)).exp()
    assert torch.allclose(at_zero, torch.nn.functional.one_hot(state.tokens, 5).float())


@pytest.mark.parametrize("process", processes(symbols=7), ids=repr)
def test_corruption_follows_the_channel(process):
    x0 = torch.arange(7).repeat(2, 2000)
    t = double([[0.3], [0.8]])
    state = process.corrupt(x0, t, key=Key(0, torch.arange(2)))
    assert state.tokens.min() >= 0
    assert state.tokens.max() < process.num_states
    for row in (0, 1):
        expected = exact.channel(process, t[row, 0])  # the noise of the lifted process is even
        for v in range(7):
            drawn = state.tokens[row][x0[row] == v]
            law = torch.bincount(drawn, minlength=process.num_states) / len(drawn)
            assert torch.allclose(law.double(), expected[v], atol=0.04)
    pure = process.prior((2, 14000), key=Key(0, torch.arange(2))).tokens
    law = torch.bincount(pure.flatten(), minlength=process.num_states) / 28000
    noise = process.noise_law(process.schedule.inverse(double(0.0)))
    assert torch.allclose(law.double(), noise, atol=0.01)


def test_even_noise_steps_over_a_mask_that_is_not_the_last_state():
    process, t = Hybrid(5, 2, 0.5, Linear()), double(0.4)
    x0 = torch.tensor([0, 1, 3, 4]).repeat(2, 3000)
    z = process.corrupt(x0, t.expand(2, 1), key=Key(0, torch.arange(2))).tokens
    expected = exact.channel(process, t)
    for v in (0, 1, 3, 4):
        law = torch.bincount(z[x0 == v], minlength=5) / (z[x0 == v]).numel()
        assert torch.allclose(law.double(), expected[v], atol=0.02)


@pytest.mark.parametrize("process", processes(), ids=repr)
def test_pinning_is_idempotent_and_keeps_the_rest(process):
    state = process.prior((2, 5), key=Key(0, torch.arange(2)))
    x0, where = torch.ones(2, 5, dtype=torch.int64), torch.tensor([True, False, True, False, False])
    once = process.pin(state, x0, where)
    assert torch.equal(process.pin(once, x0, where).tokens, once.tokens)
    assert (once.tokens[:, where] == 1).all()
    assert torch.equal(once.tokens[:, ~where], state.tokens[:, ~where])


def test_a_pinned_token_is_known_to_be_clean_even_where_it_equals_its_noise():
    process = lifted()
    state = process.prior((2, 5), key=Key(0, torch.arange(2)))
    where = torch.tensor([True, False, True, False, False]).expand(2, 5)
    pinned = process.pin(state, state.tokens, where)  # every token is its own noise
    assert torch.equal(pinned.tokens, state.tokens)
    assert torch.equal(process.active(pinned), ~where)


def test_processes_compare_by_their_settings():
    assert Uniform(5, Linear()) == Uniform(5, Linear(0.0))
    assert Uniform(5, Linear()) != Uniform(5, Linear(1e-3))


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="mask_id must be one of"):
        Absorbing(4, 4, Linear())
    with pytest.raises(UserError, match="num_states must be at least 2"):
        Uniform(1, Linear())
    with pytest.raises(ValueError, match="exactly one"):
        Prediction(Uniform(2, Linear()), State(torch.zeros(1)), double(0.5))
