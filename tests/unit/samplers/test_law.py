"""The exact law of the ancestral sampler, by pushing every state through it."""

import math

import pytest
import torch

from dlm import Prediction
from dlm.lab import Oracle, exact
from dlm.random import Key
from dlm.samplers import Ancestral, CosineGrid, EvenGrid, GridSampler
from dlm.schedules import Cosine, Geometric, Linear
from tests.toys import correlated_law, processes, product_table, uniform

LAW = correlated_law()
STEPS = [16, 32, 64]


def errors(process, law, steps, grid=None, oracle=None):
    """(path KL, terminal KL, terminal TV) of the ancestral sampler."""
    oracle = oracle or Oracle(law, process)
    times = process.schedule.inverse((grid or EvenGrid()).levels(steps, process.schedule))
    output = exact.output_law(oracle, Ancestral(), times, law.ndim)
    data = exact.embed(law, process)
    path = exact.path_kl(law, oracle, Ancestral(), times)
    return path.item(), exact.kl(data, output).item(), exact.total_variation(data, output).item()


def order(values):
    """Slope of log error against log steps, between the two finest runs."""
    return -math.log(values[-1] / values[-2]) / math.log(STEPS[-1] / STEPS[-2])


@pytest.mark.parametrize("process", processes(), ids=repr)
def test_path_kl_and_terminal_tv_fall_with_order_one(process):
    measured = [errors(process, LAW, steps) for steps in STEPS]
    path, terminal, tv = zip(*measured, strict=True)
    assert order(path) == pytest.approx(1.0, abs=0.05)
    assert order(tv) == pytest.approx(1.0, abs=0.05)
    assert 1.0 < order(terminal) <= 2.0
    assert all(p >= k for p, k in zip(path, terminal, strict=True))
    assert tv[-1] < 0.02


@pytest.mark.parametrize("schedule", [Linear(), Linear(1e-3), Cosine(), Geometric()], ids=repr)
def test_on_one_grid_the_schedule_does_not_matter(schedule):
    """Grids are in alpha and reach 0 and 1 exactly, even for schedules that stop short of them."""
    for mine, reference in zip(processes(schedule), processes(), strict=True):
        assert errors(mine, LAW, 4) == pytest.approx(errors(reference, LAW, 4), abs=1e-9)


@pytest.mark.parametrize("process", processes(), ids=repr)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_product_law_is_exact_in_any_number_of_steps(process, steps):
    assert errors(process, product_table(), steps)[2] < 1e-12
    assert errors(process, product_table(), steps, CosineGrid())[2] < 1e-12


class DenoiserAsLeaveOneOut:
    """The mistake of published correctors: the denoiser used as leave-one-out posterior."""

    time_conditioning = True

    def __init__(self, oracle):
        self.process, self.oracle = oracle.process, oracle

    def passes(self, length):
        return 1

    def hidden(self, state, t, context=None):
        return self.oracle.hidden(state, t)

    def predict(self, hidden, state, t):
        right = self.oracle.predict(hidden, state, t)
        return Prediction(self.process, state, t, log_loo=right.log_denoiser)


def test_plugging_in_the_denoiser_is_biased_for_uniform():
    """Even for a product law, and more steps do not help."""
    process, law = uniform(), product_table()
    biased = [
        errors(process, law, steps, oracle=DenoiserAsLeaveOneOut(Oracle(law, process)))[2]
        for steps in STEPS
    ]
    assert min(biased) > 0.05
    assert abs(biased[-1] - biased[-2]) < 0.02


@pytest.mark.parametrize("process", processes(), ids=repr)
def test_the_sampler_draws_from_the_law_that_was_pushed(process):
    """The loop with thinning has the law of the dense kernel: chi-square, 20,000 draws."""
    number, steps = 20_000, 3
    oracle = Oracle(LAW, process)
    times = process.schedule.inverse(EvenGrid().levels(steps, process.schedule))
    expected = exact.output_law(oracle, Ancestral(), times, LAW.ndim) * number
    sampler = GridSampler(Ancestral(), EvenGrid(), steps=steps)
    tokens = sampler(oracle, (number, LAW.ndim), key=Key(0, torch.arange(number))).tokens
    place = process.num_states ** torch.arange(LAW.ndim - 1, -1, -1)
    counts = torch.bincount((tokens * place).sum(-1), minlength=len(expected)).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi2 = ((counts - expected) ** 2 / expected)[possible].sum().item()
    freedom = int(possible.sum()) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)
