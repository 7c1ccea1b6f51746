"""The number that is reported: ratio of sums, calibrated interval, no NaN or infinity."""

import json
import math

import pytest
import torch

from dlm.errors import UserError
from dlm.evaluation import LikelihoodTotals, default_draws


def totals(nats, tokens):
    result = LikelihoodTotals()
    result.update(torch.as_tensor(nats, dtype=torch.float64), torch.as_tensor(tokens))
    return result


def test_bits_and_perplexity_of_known_nats():
    result = totals([3 * math.log(2), 5 * math.log(2)], [1, 3]).result(16, draws=1, seed=0)
    assert result.nelbo == pytest.approx(2 * math.log(2))
    assert result.ppl == pytest.approx(4)
    assert result.bits_per_byte == pytest.approx(0.5)
    assert result.nelbo_stderr is not None
    assert result.bits_per_byte_low is not None
    low = 0.5 * (1 - 1.96 * result.nelbo_stderr / result.nelbo)
    assert result.bits_per_byte_low == pytest.approx(low, rel=1e-4)
    assert (result.tokens, result.sequences) == (4, 2)


def test_interval_covers_the_truth_in_95_of_100_data_sets():
    generator = torch.Generator().manual_seed(0)
    truth, hits, data_sets = 3.0, 0, 2000
    for _ in range(data_sets):
        tokens = torch.randint(1, 40, (200,), generator=generator)
        noise = torch.randn(200, generator=generator, dtype=torch.float64)
        result = totals(tokens * truth + noise * tokens, tokens).result(None, draws=1, seed=0)
        assert result.ppl_low is not None
        assert result.ppl_high is not None
        hits += result.ppl_low < math.exp(truth) < result.ppl_high
    assert 0.93 < hits / data_sets < 0.965


def test_merged_parts_give_the_whole():
    generator = torch.Generator().manual_seed(1)
    nats = torch.rand(31, generator=generator, dtype=torch.float64) * 50
    tokens = torch.randint(0, 9, (31,), generator=generator)
    nats[tokens == 0] = 0
    whole = totals(nats, tokens).result(100, draws=1, seed=0)
    merged = totals(nats[:7], tokens[:7])
    merged.merge(totals(nats[7:], tokens[7:]).state())
    parts = merged.result(100, draws=1, seed=0)
    assert parts.nelbo == pytest.approx(whole.nelbo, rel=1e-12)
    assert parts.nelbo_stderr == pytest.approx(whole.nelbo_stderr, rel=1e-9)
    assert parts.sequences == whole.sequences == int((tokens > 0).sum())


def test_an_unknown_is_null_and_never_infinite():
    single = totals([8000.0], [10]).result(None, draws=1, seed=0).json()
    assert single["ppl"] is None  # exp(800) is beyond a float
    assert single["nelbo_stderr"] is single["ppl_low"] is single["bits_per_byte"] is None
    json.dumps(single, allow_nan=False)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_bound_that_is_not_finite_is_refused(bad):
    with pytest.raises(UserError, match="not finite"):
        totals([1.0, bad], [1, 1])


def test_no_tokens_is_a_sentence():
    with pytest.raises(UserError, match="no token"):
        totals([0.0], [0]).result(None, draws=1, seed=0)


def test_eight_draws_below_two_thousand_sequences():
    assert (default_draws(1999), default_draws(2000)) == (8, 1)
