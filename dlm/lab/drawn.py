"""Path KL of long sequences, by drawing: unbiased, with a standard error.

Draw x0 ~ p and its noisy path x_0, ..., x_1 along the levels of a sampler. The exact reverse path
has, by Bayes, the probability p(x0) prod q(x_t | x_s); the sampler's is that of pure noise times
prod_i k_i(x_s^i | x_t). The mean of the difference of their logs is the path KL:

    E [ log p(x0) + sum_k log q(x_t | x_s) - log pi(x_1) - sum_k sum_i log k_i(x_s^i | x_t) ].

Its standard deviation is about the square root of twice the path KL where that is small, so
hundreds of sequences tell an error of a few nats to some percent. Averaging each term by itself
over less noise, entropies in place of logs, was tried and is worse: the terms no longer cancel.

Source: derived here.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from dlm.lab.exact import noise_mass, rows_of, transition
from dlm.lab.laws import Estimate, Law
from dlm.processes import Prediction, Process, State
from dlm.processes.prediction import pick
from dlm.random import Key
from dlm.samplers import Kernel


def drawn_path_kl(
    law: Law, process: Process, kernel: Kernel, levels: Tensor, samples: int, seed: int = 0
) -> Estimate:
    """Path KL of a sampler with the exact posterior, nats.

    Args:
        law: over V symbols.
        process: over V states, or V and MASK as the last; one that keeps no noise.
        kernel: whose steps are taken.
        levels: alphas from 0 to 1, float64 (K + 1,).
        samples: sequences.
        seed: of the draws.
    """
    key = Key(seed, torch.arange(samples))
    later = law.sample(samples, key=key.fold("clean"))
    total = law.log_prob(later)
    times = process.schedule.inverse(levels)
    steps = list(pairwise(times))
    for k, (t, s) in reversed(list(enumerate(steps))):  # from data to noise
        after = later
        u = key.fold("step", k).uniform(law.length, 2)
        later = process.renoise(State(after), s, t, u).tokens
        total += pick(rows_of(transition(process, s, t), after), later).log().sum(-1)
        total -= pick(_step(law, process, kernel, later, t, s), after).sum(-1)
    total -= process.noise_law(times[0])[later].log().sum(-1)
    return Estimate(total.mean().item(), (total.std() / samples**0.5).item())


def _step(
    law: Law, process: Process, kernel: Kernel, tokens: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """log k_i(. | x_t), (N, L, K)."""
    shown = torch.nn.functional.one_hot(tokens, process.num_states)[..., : law.symbols]
    mass = noise_mass(process, t)[tokens][..., None]
    loo = law.log_posterior(torch.log(process.schedule.alpha(t) * shown + mass))
    hidden = process.num_states - law.symbols
    loo = torch.nn.functional.pad(loo, (0, hidden), value=-torch.inf)
    prediction = Prediction(process, State(tokens), t.expand(tokens.shape), log_loo=loo)
    return kernel.log_probs(prediction, s)
