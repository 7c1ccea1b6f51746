"""Training times: functions of the sample counter, even over the global batch."""

import torch

from dlm.times import T_MIN, LowDiscrepancy, UniformTimes


def test_low_discrepancy_covers_every_stratum_of_the_global_batch():
    t = LowDiscrepancy()(torch.arange(64, 128), seed=0, batch_size=64).t
    strata = (t * 64).floor().sort().values
    gaps = t.sort().values.diff()
    assert torch.equal(strata.unique(), strata)
    assert torch.allclose(gaps, torch.full((63,), 1 / 64).double(), atol=1e-9)


def test_every_single_time_is_uniform():
    rows = torch.arange(0, 64 * 4000, 64) + 5
    for times in (LowDiscrepancy(), UniformTimes()):
        t = times(rows, seed=0, batch_size=64).t
        assert abs(t.mean() - 0.5) < 0.02
        assert abs(t.var() - 1 / 12) < 0.005


def test_ranks_and_accumulation_share_one_grid():
    """Two devices with half the batch each draw what one device with all of it draws."""
    for times in (LowDiscrepancy(), UniformTimes()):
        whole = times(torch.arange(32), seed=3, batch_size=16).t
        parts = [times(rows, seed=3, batch_size=16).t for rows in torch.arange(32).split(4)]
        assert torch.equal(whole, torch.cat(parts))


def test_steps_and_seeds_differ_and_times_stay_in_range():
    for times in (LowDiscrepancy(), UniformTimes()):
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
