"""Schedules: monotone, invertible, exact at both ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlm.errors import UserError
from dlm.schedules import Cosine, Geometric, Linear, Piecewise, Polynomial
from tests.toys import double

KNOTS = (1.0, 0.95, 0.7, 0.3, 0.02, 0.0)
SCHEDULES = [
    Linear(),
    Linear(1e-3),
    Cosine(),
    Polynomial(0.5),
    Polynomial(3.0),
    Geometric(),
    Piecewise(KNOTS),
]


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


def test_piecewise_goes_through_its_knots_and_keeps_its_digits_at_both_ends():
    schedule = Piecewise(KNOTS)
    t = torch.arange(6, dtype=torch.float64) / 5
    torch.testing.assert_close(schedule.alpha(t), torch.tensor(KNOTS, dtype=torch.float64))
    middle = schedule.alpha(double(0.5))
    assert middle == pytest.approx(0.5)
    assert schedule.dalpha(double(0.5)) == pytest.approx(-2.0)
    noise = schedule.log_one_minus_alpha(double(1e-13)).exp()
    assert noise.item() == pytest.approx(0.25e-13, rel=1e-12)
    alpha = schedule.log_alpha(double(1 - 2.0**-40)).exp()
    assert alpha.item() == pytest.approx(0.1 * 2.0**-40, rel=1e-12)
    assert schedule.log_alpha(double(1.0)) == -torch.inf
    assert schedule.log_one_minus_alpha(double(0.0)) == -torch.inf
    third = Piecewise((1.0, 0.5, 0.25, 0.0))
    last = third.log_alpha(double(1 - 2.0**-53)).exp()  # 3 t rounds to 3, 3 (1 - t) is exact
    assert last.item() == pytest.approx(0.75 * 2.0**-53, rel=1e-12)


def test_even_knots_are_the_linear_schedule():
    t = torch.tensor([1e-9, 0.1, 0.5, 0.9, 1 - 1e-9], dtype=torch.float64)
    even = Piecewise((1.0, 0.75, 0.5, 0.25, 0.0))
    for name in ("log_alpha", "log_one_minus_alpha", "dalpha"):
        torch.testing.assert_close(getattr(even, name)(t), getattr(Linear(), name)(t))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Linear(1.0), "alpha_min must be in"),
        (lambda: Polynomial(0.0), "power must be positive"),
        (lambda: Geometric(2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: Piecewise((1.0,)), "from 1 at t=0 to 0 at t=1"),
        (lambda: Piecewise((0.9, 0.0)), "from 1 at t=0 to 0 at t=1"),
        (lambda: Piecewise((1.0, 0.1)), "from 1 at t=0 to 0 at t=1"),
        (lambda: Piecewise((1.0, 0.5, 0.5, 0.0)), "knot 1 is 0.5 and knot 2 is 0.5"),
        (lambda: Piecewise((1.0, 0.4, 0.6, 0.0)), "must fall at every step"),
        (lambda: Piecewise((1.0, float("nan"), 0.0)), "must fall at every step"),
    ],
)
def test_bad_settings_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
