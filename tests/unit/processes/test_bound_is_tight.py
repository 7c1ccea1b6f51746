"""The bound at the exact leave-one-out posterior integrates to -log p(x0), for every x0."""

from itertools import pairwise

import pytest
import torch

from dlm.lab import Oracle, exact
from dlm.samplers import Ancestral, EvenGrid
from dlm.schedules import Cosine, Linear
from tests.toys import correlated_law, processes

LAW = correlated_law()


@pytest.mark.parametrize("process", processes(Linear()) + processes(Cosine()), ids=repr)
def test_time_integral_of_the_bound_is_minus_log_p(process):
    nats = exact.time_integral(LAW, Oracle(LAW, process), process.nelbo)
    assert torch.allclose(nats, -LAW.flatten().log(), atol=1e-6)


@pytest.mark.parametrize("process", processes(), ids=repr)
def test_k_step_bound_is_entropy_plus_step_costs(process):
    """E NELBO_K - H(p) is the path KL of the K-step sampler; the last step reconstructs."""
    clean = exact.all_states(LAW.shape[0], LAW.ndim)
    times = process.schedule.inverse(EvenGrid().levels(3, process.schedule))
    oracle = Oracle(LAW, process)
    total = torch.zeros((), dtype=torch.float64)
    noises = exact.every_noise(process, LAW.ndim)
    for noise in noises:
        states = exact.with_noise(exact.all_states(process.num_states, LAW.ndim), noise)
        for t, s in pairwise(times):
            prediction = oracle.predict(oracle.hidden(states, t[None]), states, t)
            law = exact.product_law(exact.rows_of(exact.channel(process, t, noise), clean))
            for n, x0 in enumerate(clean):
                nats = process.bridge_kl(prediction, x0.expand_as(states.tokens), s).sum(-1)
                total += LAW.flatten()[n] * (law[n] * torch.where(law[n] > 0, nats, 0.0)).sum()
    total = total / len(noises)
    path = exact.path_kl(LAW, Oracle(LAW, process), Ancestral(), times)
    assert torch.allclose(total - exact.entropy(LAW), path, atol=1e-12)
