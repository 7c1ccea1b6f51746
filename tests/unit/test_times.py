"""Training times: functions of the sample counter, even over the global batch, unbiased."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab import exact
from dlm.random import Key
from dlm.times import (
    T_MIN,
    ImportanceSampled,
    LowDiscrepancy,
    Memory,
    TimeDraw,
    UniformTimes,
    bin_edges,
)
from tests.toys import absorbing, correlated_law, everywhere, uniform

LAWS = [LowDiscrepancy(), UniformTimes()]
STEEP = ImportanceSampled(density=tuple(2.0**-k for k in range(16)), bins=16)
LENGTH = 32


def test_low_discrepancy_covers_every_stratum_of_the_global_batch():
    t = LowDiscrepancy()(torch.arange(64, 128), seed=0, batch_size=64).t
    strata = (t * 64).floor().sort().values
    gaps = t.sort().values.diff()
    assert torch.equal(strata.unique(), strata)
    assert torch.allclose(gaps, torch.full((63,), 1 / 64).double(), atol=1e-9)


def test_every_single_time_is_uniform():
    rows = torch.arange(0, 64 * 4000, 64) + 5
    for times in LAWS:
        t = times(rows, seed=0, batch_size=64).t
        assert abs(t.mean() - 0.5) < 0.02
        assert abs(t.var() - 1 / 12) < 0.005


def test_ranks_and_accumulation_share_one_grid():
    """Two devices with half the batch each draw what one device with all of it draws."""
    for times in (*LAWS, STEEP, ImportanceSampled()):
        whole = times(torch.arange(32), seed=3, batch_size=16).t
        parts = [times(rows, seed=3, batch_size=16).t for rows in torch.arange(32).split(4)]
        assert torch.equal(whole, torch.cat(parts))


def test_steps_and_seeds_differ_and_times_stay_in_range():
    for times in (*LAWS, STEEP, ImportanceSampled()):
        t = times(torch.arange(10_000), seed=0, batch_size=10).t
        assert t.min() >= T_MIN
        assert t.max() <= 1
        assert not torch.equal(t[:10], t[10:20])
        assert not torch.equal(t, times(torch.arange(10_000), seed=1, batch_size=10).t)


def test_low_discrepancy_has_the_smaller_variance():
    def spread(times):
        t = times(torch.arange(64 * 500), seed=0, batch_size=64).t.reshape(500, 64)
        return (t**2).mean(-1).var()

    assert spread(LowDiscrepancy()) < spread(UniformTimes()) / 50


def noisy_loss(t: Tensor, key: Key) -> Tensor:
    """A toy of a masked sequence: each token costs 1 / t with probability t, and E l = LENGTH."""
    return (key.uniform(LENGTH) < t[:, None]).sum(-1) / t


def moment(t: Tensor, centred: bool) -> Tensor:
    """Variance of `noisy_loss`, or its second moment."""
    return LENGTH * (1 - t) / t + (0 if centred else LENGTH**2)


def learned(times: ImportanceSampled, steps: int) -> Memory:
    """The memory of a run of so many steps of 64 sequences."""
    memory = times.memory()
    for step in range(steps):
        rows = torch.arange(64) + 64 * step
        draw = times(rows, seed=0, batch_size=64, memory=memory)
        loss = noisy_loss(draw.t, Key(1, rows)) * draw.weight
        memory.update(memory.sums(draw, loss))
    return memory


def variance(times, memory: Memory | None = None, batches: int = 4000) -> float:
    """Of the mean loss of a batch of 64."""
    rows = torch.arange(64 * batches)
    draw = times(rows, seed=5, batch_size=64, memory=memory)
    loss = noisy_loss(draw.t, Key(6, rows)) * draw.weight
    mean = loss.reshape(batches, 64).mean(-1)
    assert abs(mean.mean() - LENGTH) < 4 * mean.std() / math.sqrt(batches)
    return mean.var().item()


def test_bins_are_geometric_near_the_data_and_even_elsewhere():
    edges = bin_edges(32)
    assert edges[0] == 0
    assert edges[1] > T_MIN  # else clamped times would be of another bin
    assert edges[-1] == 1
    assert (edges[2:17].log().diff().diff().abs() < 1e-9).all()
    assert (edges[16:].diff().diff().abs() < 1e-12).all()
    widths = edges.diff()
    assert widths[15] / widths[16] == pytest.approx(1, abs=0.15)  # no step where they meet
    assert len(bin_edges(7)) == 8


@pytest.mark.parametrize("times", [STEEP, ImportanceSampled()], ids=["given", "warm-up"])
def test_weights_are_one_over_the_density(times):
    """One batch is a fine grid in the cumulative density: its points count every bin's mass."""
    n = 100_000
    t, weight = times(torch.arange(n), seed=0, batch_size=n)
    edges, masses = bin_edges(times.bins), times.masses()
    counts = torch.histogram(t, edges).hist
    assert torch.allclose(counts / n, masses, atol=3 / n)
    for place, (low, high) in enumerate(pairwise(edges)):
        inside = (t > low) & (t < high)
        assert torch.allclose(weight[inside], (high - low) / masses[place])
        assert abs((t[inside] - low).mean() / (high - low) - 0.5) < 0.02 or place < 2
    assert weight.max() <= (2 if times.density is None else 1 / times.even_share)


@pytest.mark.parametrize("times", [STEEP, ImportanceSampled()], ids=["given", "warm-up"])
@pytest.mark.parametrize(
    "process", [absorbing(symbols=2), uniform(symbols=2)], ids=["mask", "even"]
)
def test_the_weighted_bound_is_the_entropy(times, process):
    """On an enumerated law, integrated over the variable that a batch stratifies."""
    law = correlated_law(2, length=2)
    clean = exact.all_states(2, 2)
    points, shares = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(4))
    total, ends = torch.zeros(()).double(), [0.0, *times.masses().cumsum(0).tolist()]
    for low, high in pairwise(ends):
        draw = times.at(low + (high - low) * (points + 1) / 2)
        for t, weight, share in zip(*draw, shares * (high - low) / 2, strict=True):
            states, prediction, _ = everywhere(process, law, t)
            chance = exact.product_law(exact.channel(process, t)[clean])
            for p, x0, q in zip(law.flatten(), clean, chance, strict=True):
                nats = process.nelbo(prediction, x0.expand_as(states.tokens)).sum(-1)
                total += share * weight * p * torch.where(q > 0, q * nats, 0.0).sum()
    assert total == pytest.approx(exact.entropy(law).item(), rel=1e-4)


@pytest.mark.parametrize("centred", [True, False], ids=["sd", "rms"])
def test_the_learned_density_becomes_the_root_of_the_moment(centred):
    times = ImportanceSampled(bins=16, centred=centred)
    memory = learned(times, 3000)
    edges = bin_edges(16)
    low, high = edges[:-1, None], edges[1:, None]
    t = (low + (high - low) * (torch.arange(1000) + 0.5) / 1000).clamp(min=T_MIN)
    expected = moment(t, centred).mean(-1).sqrt() * edges.diff()
    actual = (times.masses(memory) - 0.1 * edges.diff()) / 0.9
    ratio = actual / (expected / expected.sum())
    assert (ratio[7:].log().abs() < 0.05).all()
    assert (ratio[2:7].log().abs() < 0.25).all()
    assert (ratio[:2].log().abs() < 1.6).all()  # one draw in 500 shows a noisy token, or fewer


def test_importance_sampling_has_the_smaller_variance():
    """Even times pay for every decade of t alike; a stratified batch does not pay for the mean."""
    even = variance(LowDiscrepancy())
    centred, raw = ImportanceSampled(), ImportanceSampled(centred=False)
    memory = learned(centred, 600)
    assert memory.draws.min() >= centred.min_draws
    best = variance(centred, memory)
    assert best < 0.4 * even
    assert best < 1.1 * LENGTH * (math.pi / 2) ** 2 / 64  # the integral of sd, squared
    assert best < 0.9 * variance(raw, memory)
    assert best < 0.9 * variance(centred)  # warming up


def test_bins_that_saw_no_loss_do_not_get_the_greatest_weight():
    """A hundred draws at t = 1e-5 show no noisy token; the next that does would count tenfold."""
    times = ImportanceSampled(bins=8, centred=False)
    memory, zeros = times.memory(), torch.zeros(8)
    square = torch.tensor([0.0, 0, 9, 4, 4, 4, 1, 1]).double()
    memory.load_state_dict({"draws": zeros + 200, "mean": zeros, "square": square})
    density = times.masses(memory) / bin_edges(8).diff()
    torch.testing.assert_close(density[:3], density[2].expand(3))
    assert density[2] > density[3] > density[6]


def test_a_memory_forgets_and_is_of_the_losses_without_their_weights():
    memory = Memory(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))

    def see(t: list[float], loss: float) -> None:
        draw = TimeDraw(torch.tensor(t), torch.full((len(t),), 0.25))
        memory.update(memory.sums(draw, torch.full((len(t),), 0.25 * loss)))

    see([0.1, 0.2, 0.7], 3.0)
    assert memory.draws.tolist() == [2, 1]
    assert memory.square.tolist() == [9, 9]
    assert memory.mean.tolist() == [3, 3]
    see([0.1, 0.2], 1.0)
    assert memory.square.tolist() == [5, 9]  # the mean of 9, 9, 1, 1, while it is young
    torch.testing.assert_close(memory.spread(centred=True)[1], torch.tensor(1e-15).double())
    for loss in [3.0] * 20 + [2.0] * 40:
        see([0.1] * 500, loss)
    assert memory.square[0] == pytest.approx(4, abs=1e-3)
    assert memory.square[1] == 9


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bins": 3}, "bins must be at least 4"),
        ({"even_share": 0.0}, "even_share must be in"),
        ({"even_share": 1.5}, "even_share must be in"),
        ({"min_draws": 0}, "min_draws must be at least 1"),
        ({"density": (1.0,) * 8}, "has 8 numbers for 32 bins; set times.bins=8"),
        ({"density": (1.0, -1.0, 1.0, 1.0), "bins": 4}, "from 0 on"),
        ({"density": (0.0,) * 4, "bins": 4}, "from 0 on"),
        ({"density": (math.nan,) * 4, "bins": 4}, "from 0 on"),
        ({"density": (math.inf,) * 4, "bins": 4}, "from 0 on"),
    ],
)
def test_bad_settings_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        ImportanceSampled(**settings)
