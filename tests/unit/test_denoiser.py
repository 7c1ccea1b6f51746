"""The denoiser binds network, process and parameterization, and refuses what does not fit."""

import pytest
import torch

from dlm import Denoiser, State, UserError
from dlm.networks import DiT
from dlm.parameterizations import LeaveOneOut
from dlm.schedules import Cosine, Geometric
from tests.toys import absorbing, double, uniform


def dit(states, conditioned):
    torch.manual_seed(0)
    net = DiT(states, length=8, width=16, depth=1, heads=2, time_conditioning=conditioned)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.3)
    return net


def test_head_and_process_must_agree():
    with pytest.raises(UserError, match="the head has 5 outputs but the process has 4 states"):
        Denoiser(dit(5, False), absorbing(), LeaveOneOut())


def test_conditioning_must_agree():
    with pytest.raises(UserError, match="time_conditioning is True but the backbone"):
        Denoiser(dit(3, False), uniform(), LeaveOneOut())
    assert not Denoiser(dit(3, False), uniform(), LeaveOneOut(), False).time_conditioning
    assert Denoiser(dit(4, True), absorbing(), LeaveOneOut(), True).time_conditioning


def test_the_network_sees_the_level_not_the_time():
    """The same alpha on another schedule gives the same prediction; another alpha does not."""
    denoiser = Denoiser(dit(3, True), uniform(), LeaveOneOut())
    state = State(torch.randint(0, 3, (2, 5)))
    t = double([0.2, 0.7])
    here = denoiser(state, t).log_loo
    for schedule in (Cosine(), Geometric()):
        other = denoiser.on(schedule)
        there = other(state, schedule.inverse(denoiser.process.schedule.alpha(t))).log_loo
        assert torch.allclose(here, there, atol=1e-5)
    assert not torch.allclose(here, denoiser(state, t + 0.1).log_loo, atol=1e-3)


def test_an_absorbing_denoiser_needs_no_time():
    denoiser = Denoiser(dit(4, False), absorbing(), LeaveOneOut())
    state = State(torch.randint(0, 4, (2, 5)))
    assert torch.equal(
        denoiser(state, double([0.2, 0.7])).log_loo, denoiser(state, double([0.9, 0.1])).log_loo
    )


def test_the_mask_is_never_predicted():
    denoiser = Denoiser(dit(4, False), absorbing(), LeaveOneOut())
    prediction = denoiser(State(torch.full((2, 5), 3)), double([0.5, 0.5]))
    assert (prediction.log_loo[..., 3] == -torch.inf).all()


def test_pure_noise_and_clean_text_are_finite_levels():
    denoiser = Denoiser(dit(3, True), uniform(), LeaveOneOut())
    prediction = denoiser(State(torch.zeros(2, 5).long()), double([0.0, 1.0]))
    assert prediction.log_loo.isfinite().all()
