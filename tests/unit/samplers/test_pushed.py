"""Kernels, correctors, whole samplers by enumeration: what they keep, how fast they err."""

import math

import pytest
import torch

from dlm import UserError
from dlm.lab import Oracle, exact, pushed
from dlm.random import Key
from dlm.samplers import (
    Ancestral,
    ByConfidence,
    Cap,
    DenoiseRenoise,
    Euler,
    EvenGrid,
    ForwardBackward,
    GeometricGrid,
    Gibbs,
    GridSampler,
    MaximalCoupling,
    Plateau,
    Psi,
    RefreshedBridge,
    ReMDM,
    Rescale,
    SampledX0,
    TauLeaping,
    Temperature,
    TopK,
)
from tests.toys import (
    absorbing,
    correlated_law,
    double,
    hybrid,
    lifted,
    processes,
    product_table,
    some_noise,
    uniform,
)

LAW = correlated_law(length=2)
PRODUCT = product_table(length=2)
STEPS = (32, 64, 128)
KERNELS = [Ancestral(), SampledX0(), MaximalCoupling(), Euler(), TauLeaping()]
REMASKING = [Psi(0.8), ReMDM(Cap(0.2)), ReMDM(Rescale(0.3)), RefreshedBridge()]
every_process = pytest.mark.parametrize("process", processes(), ids=lambda p: type(p).__name__)


def law_of(kernel, process, table, steps, **settings):
    sampler = GridSampler(kernel, EvenGrid(), steps=steps, **settings)
    return pushed.grid_law(sampler, Oracle(table, process), table.ndim)


def error(kernel, process, table, steps, **settings):
    target = exact.embed(table, process)
    return exact.total_variation(target, law_of(kernel, process, table, steps, **settings)).item()


def slope(values):
    return -math.log2(values[-1] / values[-2])


@every_process
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_terminal_error_falls_with_the_declared_order(kernel, process):
    if kernel.refusal(process) is not None:
        assert isinstance(kernel, MaximalCoupling)
        return
    values = [error(kernel, process, LAW, steps) for steps in STEPS]
    # rates grow like 1 / t, those of hybrid noise like 1 / sqrt(alpha): the order is reached slowly
    slow = isinstance(kernel, Euler | TauLeaping)
    assert slope(values) == pytest.approx(kernel.order, abs=0.2 if slow else 0.05)


@every_process
@pytest.mark.parametrize("kernel", [Ancestral(), SampledX0()], ids=repr)
def test_path_error_falls_with_the_declared_order(kernel, process):
    oracle = Oracle(LAW, process)
    values = []
    for steps in STEPS:
        times = process.schedule.inverse(EvenGrid().levels(steps, process.schedule))
        values.append(exact.path_kl(LAW, oracle, kernel, times).item())
    assert slope(values) == pytest.approx(kernel.path_order, abs=0.05)


def test_path_error_of_euler_for_uniform_noise_stays_on_even_levels():
    """The last steps halve the noise, however short they are: why no order is declared."""
    process, values = uniform(), []
    for steps in STEPS:
        times = process.schedule.inverse(EvenGrid().levels(steps, process.schedule))
        values.append(exact.path_kl(LAW, Oracle(LAW, process), Euler(), times).item())
    assert min(values) > 0.5
    assert Euler().path_order is None


@pytest.mark.parametrize("steps", [1, 4])
def test_euler_is_ancestral_for_masks_on_the_linear_schedule(steps):
    process = absorbing()
    ours, theirs = (law_of(kernel, process, LAW, steps) for kernel in (Euler(), Ancestral()))
    assert torch.allclose(ours, theirs, atol=1e-14)
    grid = GridSampler(Euler(), GeometricGrid(), steps=5)
    same = GridSampler(Ancestral(), GeometricGrid(), steps=5)
    oracle = Oracle(LAW, process)
    laws = [pushed.grid_law(each, oracle, LAW.ndim) for each in (grid, same)]
    assert torch.allclose(*laws, atol=1e-14)


@every_process
@pytest.mark.parametrize("kernel", REMASKING, ids=repr)
@pytest.mark.parametrize("steps", [1, 3])
def test_remasking_keeps_the_marginals(kernel, process, steps):
    """On independent tokens the marginals are everything: any step that keeps them is exact."""
    if kernel.refusal(process) is None:
        assert error(kernel, process, PRODUCT, steps) < 1e-14


def test_remasking_by_confidence_looks_at_the_tokens_and_so_does_not_keep_them():
    kernel = ReMDM(ByConfidence(1.0))
    assert error(kernel, absorbing(), PRODUCT, 1) < 1e-14
    assert 1e-4 < error(kernel, absorbing(), PRODUCT, 3) < 0.01
    assert 1e-4 < error(kernel, lifted(), PRODUCT, 3) < 0.05


def test_remasking_at_fixed_settings_has_no_order():
    values = [error(ReMDM(Cap(0.1)), absorbing(), LAW, steps) for steps in STEPS]
    assert slope(values) < 0.5
    assert ReMDM(Cap(0.1)).order is None


def test_a_switch_and_a_window_leave_the_rest_alone():
    process = absorbing()
    never = law_of(ReMDM(Cap(0.2), switch=1.0), process, LAW, 4)
    assert torch.allclose(never, law_of(Ancestral(), process, LAW, 4), atol=1e-14)
    outside = law_of(Psi(0.5, low=0.0, high=0.1), process, LAW, 4)
    assert torch.allclose(outside, law_of(Ancestral(), process, LAW, 4), atol=1e-14)
    inside = law_of(Psi(0.5, low=0.4, high=0.8), process, LAW, 4)
    assert not torch.allclose(inside, law_of(Ancestral(), process, LAW, 4), atol=1e-5)


def test_psi_without_fresh_noise_is_ancestral():
    for process in processes():
        assert torch.allclose(
            law_of(Psi(1.0), process, LAW, 3), law_of(Ancestral(), process, LAW, 3), atol=1e-14
        )


def test_refreshed_noise_keeps_the_joint_law_of_text_and_noise():
    """One token, from alpha = 0 to 0.6 in two steps: (x, u) has the law of the process there."""
    process, table = lifted(), product_table(length=1)
    times = process.schedule.inverse(torch.tensor([0.0, 0.3, 0.6], dtype=torch.float64))
    mass = pushed._start(Oracle(table, process), 1)
    for t, s in ((times[0], times[1]), (times[1], times[2])):
        mass = pushed._stepped(Oracle(table, process), RefreshedBridge(), mass, t, s)
    found = torch.zeros(3, 3, dtype=torch.float64)
    found[mass.tokens[:, 0], mass.noise[:, 0]] = mass.chance
    for u in range(3):
        expected = exact.noised_law(table, process, times[2], torch.tensor([u])) / 3
        assert torch.allclose(found[:, u], expected, atol=1e-14)


@every_process
@pytest.mark.parametrize("corrector", [Gibbs(), DenoiseRenoise()], ids=repr)
@pytest.mark.parametrize("level", [0.2, 0.7])
def test_one_random_site_leaves_the_law_invariant(corrector, process, level):
    noise, t = some_noise(process, 2), double(1 - level)
    law = exact.noised_law(LAW, process, t, noise)
    after = pushed.corrected_law(Oracle(LAW, process), corrector, law, t, noise)
    assert exact.total_variation(law, after) < 1e-12


BIASED = {
    Gibbs(positions=2): 0.02,  # both drawn from the law given the other's old value
    DenoiseRenoise(positions=2): 0.005,
    ForwardBackward(size=0.2): 0.002,
    Gibbs(selection="lowest_margin"): 0.1,
    Gibbs(selection="lowest_probability"): 0.1,
    Gibbs(selection="lowest_confidence"): 0.1,
}


@every_process
@pytest.mark.parametrize("corrector", BIASED, ids=repr)
def test_what_breaks_invariance_and_by_how_much(corrector, process):
    if corrector.refusal(process) is not None:
        assert process.shows_noise
        return
    noise, t = some_noise(process, 2), double(0.4)
    law = exact.noised_law(LAW, process, t, noise)
    after = pushed.corrected_law(Oracle(LAW, process), corrector, law, t, noise)
    assert BIASED[corrector] < exact.total_variation(law, after) < 0.3


@pytest.mark.parametrize("bend", [Temperature(0.7), TopK(2)], ids=repr)
def test_temperature_and_filters_move_the_law(bend):
    process, t = uniform(), double(0.4)
    law = exact.noised_law(LAW, process, t)
    after = pushed.corrected_law(Oracle(LAW, process), Gibbs(), law, t, bend=bend)
    assert exact.total_variation(law, after) > 0.01


def test_small_forward_backward_moves_hardly_bias():
    process, t = uniform(), double(0.4)
    law = exact.noised_law(LAW, process, t)
    drift = [
        exact.total_variation(
            law, pushed.corrected_law(Oracle(LAW, process), ForwardBackward(size), law, t)
        )
        for size in (0.2, 0.1, 0.05)
    ]
    assert drift[0] > 3 * drift[1] > 9 * drift[2]  # second order in the size


@every_process
def test_a_corrector_lowers_the_error_of_many_steps(process):
    """Ten exact sweeps at a stop mend what few steps broke."""
    plain = error(Ancestral(), process, LAW, 4)
    mended = GridSampler(
        Ancestral(), EvenGrid(), steps=4 + 20, corrector=Gibbs(), sweeps=20, correct_from=0.7
    )
    levels, corrected = mended.plan(process.schedule)
    assert len(levels) == 5
    assert corrected == [False, False, True, False]
    law = pushed.grid_law(mended, Oracle(LAW, process), LAW.ndim)
    assert exact.total_variation(exact.embed(LAW, process), law) < 0.8 * plain


@pytest.mark.parametrize("process", [absorbing(), uniform(), hybrid(), lifted()], ids=repr)
@pytest.mark.parametrize(
    "kernel", [TauLeaping(), SampledX0(), Psi(0.7), ReMDM(Cap(0.3)), RefreshedBridge()], ids=repr
)
def test_the_sampler_draws_from_the_law_that_was_pushed(kernel, process):
    """Chi-square of 20,000 draws, correctors among them."""
    if kernel.refusal(process) is not None:
        return
    number, oracle = 20_000, Oracle(LAW, process)
    sampler = GridSampler(kernel, EvenGrid(), steps=5, corrector=Gibbs(), correct_from=0.3)
    expected = pushed.grid_law(sampler, oracle, LAW.ndim) * number
    tokens = sampler(oracle, (number, LAW.ndim), key=Key(0, torch.arange(number))).tokens
    check_counts(tokens, expected, process.num_states)


def check_counts(tokens, expected, size):
    place = size ** torch.arange(tokens.shape[1] - 1, -1, -1)
    counts = torch.bincount((tokens * place).sum(-1), minlength=len(expected)).double()
    possible = expected > 1e-6
    assert counts[~possible].sum() == 0
    chi2 = ((counts - expected) ** 2 / expected)[possible].sum().item()
    freedom = int(possible.sum()) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "corrector", [Gibbs(positions=2), DenoiseRenoise(), ForwardBackward(0.3)], ids=repr
)
def test_correctors_draw_from_the_law_that_was_pushed(corrector):
    process, number = uniform(), 20_000
    oracle = Oracle(LAW, process)
    sampler = GridSampler(Ancestral(), EvenGrid(), steps=4, corrector=corrector)
    expected = pushed.grid_law(sampler, oracle, LAW.ndim) * number
    tokens = sampler(oracle, (number, LAW.ndim), key=Key(0, torch.arange(number))).tokens
    check_counts(tokens, expected, process.num_states)


def test_the_loop_remasks_on_the_plateau_alone():
    sigma = Plateau(0.3).sigma
    nothing = torch.full((2,), torch.nan)
    assert (sigma(double(0.5), double(0.6), nothing) == 0).all()
    assert (sigma(double(0.5), double(0.5), nothing) == 0.3).all()


@pytest.mark.parametrize("kernel", KERNELS + REMASKING, ids=repr)
def test_a_kernel_steps_by_hand(kernel):
    """The same law as in the sampler: frequencies of one step from one state."""
    process = lifted() if isinstance(kernel, RefreshedBridge | ReMDM) else uniform()
    number, t, s = 4000, double(0.7), double(0.4)
    oracle, key = Oracle(LAW, process), Key(0, torch.arange(number))
    state = process.corrupt(torch.zeros(number, 2, dtype=torch.int64), t, key=key.fold("x"))
    times = t.expand(number, 2)
    prediction = oracle.predict(oracle.hidden(state, t[None]), state, times)
    after = kernel(prediction, s, key=key)
    assert after.tokens.shape == state.tokens.shape
    law = kernel.log_probs(prediction, s).exp()
    for v in range(3):
        mean = law[..., v].mean()
        seen = (after.tokens == v).double().mean()
        assert abs(mean - seen) < 4 * math.sqrt(0.25 / (2 * number))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Psi(1.5), "kappa must be in"),
        (lambda: ReMDM(Cap(0.1), switch=2.0), "switch must be"),
        (lambda: Cap(-0.1), "eta must be in"),
        (lambda: Gibbs(positions=0), "positions >= 1"),
        (lambda: DenoiseRenoise(positions=0), "positions >= 1"),
        (lambda: ForwardBackward(size=1.0), "size must be"),
    ],
)
def test_bad_settings_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("sampler", "process", "sentence"),
    [
        (GridSampler(ReMDM(Cap()), EvenGrid()), uniform(), "use sampler=psi"),
        (GridSampler(RefreshedBridge(), EvenGrid()), absorbing(), "process=lifted_uniform"),
        (GridSampler(MaximalCoupling(), EvenGrid()), hybrid(), "Hybrid noise changes"),
        (
            GridSampler(Ancestral(), EvenGrid(), corrector=Gibbs(selection="lowest_margin")),
            absorbing(),
            "use selection=random",
        ),
    ],
)
def test_samplers_refuse_what_is_not_defined(sampler, process, sentence):
    with pytest.raises(UserError, match=sentence):
        sampler(Oracle(LAW, process), (2, 2), key=Key(0, torch.arange(2)))
