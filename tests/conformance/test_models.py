"""Every parameterization, objective, law of times and backbone of configs/, on every process."""

import pytest
import torch

from dlm import Context, Denoiser, UserError
from dlm.spec import build
from dlm.times import T_MIN
from tests.conformance.registry import built, composed, every, key

LENGTH = 8
TINY = ("backbone.width=16", "backbone.depth=1", "backbone.heads=2", f"length={LENGTH}")


def denoiser(*overrides: str) -> Denoiser:
    config = composed(*TINY, *overrides)
    spec = config.plain("denoiser")
    process = build(config.plain("process"))
    spec["backbone"]["time_conditioning"] = process.time_conditioned
    spec["backbone"]["noise_conditioning"] = process.noise_conditioned
    torch.manual_seed(0)
    made = build(spec)
    assert isinstance(made, Denoiser)
    return made


def batch(model: Denoiser):
    clean = model.process.num_states - (model.process.mask_id is not None)
    x0 = torch.randint(0, clean, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([5e-4, 0.4, 0.7, 1.0], dtype=torch.float64)
    return x0, t, model.process.corrupt(x0, t[:, None], key=key(4))


def defined(objective, process):
    """The objective; where it is not defined for the process, its sentence names the process."""
    if (refusal := objective.refusal(process)) is not None:
        with pytest.raises(UserError, match=type(process).__name__):
            objective.require(process)
        pytest.skip(refusal)
    return objective


@every("process")
@every("parameterization")
@every("objective")
def test_every_combination_has_a_finite_loss_and_gradient(process, parameterization, objective):
    model = denoiser(f"process={process}", f"parameterization={parameterization}")
    x0, t, _ = batch(model)
    loss = defined(built("objective", objective), model.process)
    t = loss.snap(t)
    state = model.process.corrupt(x0, t[:, None], key=key(4))
    result = loss(model, x0, state, t, torch.ones_like(x0))
    result.loss.backward()
    assert result.loss.isfinite()
    assert torch.allclose(result.rows.sum(), result.loss.detach().double(), rtol=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every("process")
@every("parameterization")
def test_padding_costs_nothing_and_influences_nothing(process, parameterization):
    model = denoiser(f"process={process}", f"parameterization={parameterization}")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x0, t, state = batch(model)
    valid = (torch.arange(LENGTH) < 5).expand_as(x0)
    context = Context(torch.where(valid, 0, -1))
    objective = built("objective", "elbo")
    losses = []
    for filler in (0, 1):
        padded = model.process.pin(state, torch.full_like(x0, filler), ~valid)
        losses.append(objective(model, x0, padded, t, valid, context).rows)
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)


@every("times")
def test_times_are_functions_of_the_counter_in_range(times):
    made, rows = built("times", times), torch.arange(4096)
    t, weight = made(rows, seed=0, batch_size=32)
    assert t.dtype == weight.dtype == torch.float64
    assert T_MIN <= t.min() <= t.max() <= 1
    assert torch.equal(t[100:103], made(rows[100:103], seed=0, batch_size=32).t)
    assert abs(weight.mean() - 1) < 0.02
    assert abs((weight * t).mean() - 0.5) < 0.02


@every("backbone")
@pytest.mark.parametrize("conditioned", [False, True])
def test_backbones_build_without_memory_and_say_their_cost(backbone, conditioned):
    with torch.device("meta"):
        spec = composed(f"backbone={backbone}").plain("backbone")
        net = build(spec | {"time_conditioning": conditioned, "noise_conditioning": conditioned})
    assert net.time_conditioning is conditioned
    assert net.head.bias is None
    assert net.head.weight.device.type == "meta"
    assert net.flops_per_token(net.length) > 6 * sum(p.numel() for p in net.blocks.parameters())
