"""Schedules: monotone, invertible, exact at both ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlm.errors import UserError
from dlm.schedules import Cosine, Geometric, Linear, Polynomial
from tests.toys import double

SCHEDULES = [Linear(), Linear(1e-3), Cosine(), Polynomial(0.5), Polynomial(3.0), Geometric()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
class TestEverySchedule:
    @given(t=st.floats(1e-6, 1.0))
    def test_inverse_undoes_alpha(self, schedule, t):
        alpha = schedule.alpha(double(t))
        assert torch.allclose(
            schedule.alpha(schedule.inverse(alpha)), alpha, rtol=1e-12, atol=1e-14
        )

    @given(t=st.floats(1e-6, 0.999), gap=st.floats(1e-4, 1.0))
    def test_alpha_decreases(self, schedule, t, gap):
        assert schedule.log_alpha(double(min(t + gap, 1.0))) < schedule.log_alpha(double(t))

    @given(t=st.floats(1e-6, 1 - 1e-6))
    def test_alpha_and_noise_sum_to_one(self, schedule, t):
        total = schedule.log_alpha(double(t)).exp() + schedule.log_one_minus_alpha(double(t)).exp()
        assert torch.allclose(total, double(1.0), rtol=1e-13)

    @given(t=st.floats(1e-4, 1 - 1e-4))
    def test_dalpha_is_the_derivative(self, schedule, t):
        t = double(t).requires_grad_()
        (expected,) = torch.autograd.grad(schedule.alpha(t), t)
        assert torch.allclose(schedule.dalpha(t.detach()), expected, rtol=1e-9, atol=1e-12)

    def test_any_level_can_be_reached(self, schedule):
        """0 and 1 included: a sampler goes from pure noise to data whatever the schedule."""
        levels = double([0.0, 1e-6, 0.5, 1.0])
        assert torch.allclose(schedule.alpha(schedule.inverse(levels)), levels, rtol=1e-9, atol=0)


def test_noise_level_keeps_its_digits_near_the_data():
    t = double(1e-12)
    assert torch.allclose(Linear().log_one_minus_alpha(t).exp(), t, rtol=1e-12, atol=0)
    assert torch.allclose(Polynomial(2.0).log_one_minus_alpha(t).exp(), t**2, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Linear(1.0), "alpha_min must be in"),
        (lambda: Polynomial(0.0), "power must be positive"),
        (lambda: Geometric(2.0, 1.0), "0 < sigma_min < sigma_max"),
    ],
)
def test_bad_settings_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
