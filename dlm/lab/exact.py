"""Exact laws on small spaces: one dense reference for every process, and samplers pushed through
exactly.

Only three facts about a process are used: q_t(z | x0) = alpha_t 1[z = x0] + b_t(z), that it is
Markov, and Bayes' rule. Nothing here shares a formula with the process files, so agreement is
evidence. All float64; states of a sequence are enumerated, K^L of them.

Source: the step cost is the chain rule of KL along the path (Dmitriev, Huang & Wei 2026, theorem
2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor

from dlm.denoiser import Predictor
from dlm.processes import Prediction, Process, State
from dlm.samplers import Kernel

RowLoss = Callable[[Prediction, Tensor], Tensor]


def noise_mass(process: Process, t: Tensor, noise: Tensor | None = None) -> Tensor:
    """b_t = (1 - alpha_t) pi_t, float64 (K,), or (L, K) given the noise; differentiable in t."""
    return process.schedule.log_one_minus_alpha(t).exp() * process.noise_law(t, noise)


def channel(process: Process, t: Tensor, noise: Tensor | None = None) -> Tensor:
    """q_t(z | x0), float64 (K, K), rows x0; given the noise (L,) of a sequence, (L, K, K)."""
    return _plus_identity(noise_mass(process, t, noise), process.schedule.alpha(t))


def transition(process: Process, s: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
    """q_{t|s}(z_t | z_s), float64 (K, K) or (L, K, K), rows z_s, s < t: composes q_s to q_t."""
    rho = process.schedule.alpha(t) / process.schedule.alpha(s)
    arrived = noise_mass(process, t, noise) - rho * noise_mass(process, s, noise)
    return _plus_identity(arrived, rho)


def jump_rate(process: Process, t: Tensor, noise: Tensor | None = None) -> Tensor:
    """r_t(y) = b_t'(y) - (alpha_t' / alpha_t) b_t(y), float64 (K,) or (L, K): rate into y."""
    slope = torch.autograd.functional.jacobian(partial(noise_mass, process, noise=noise), t)
    ratio = process.schedule.dalpha(t) / process.schedule.alpha(t)
    return cast(Tensor, slope) - ratio * noise_mass(process, t, noise)


def rows_of(kernel: Tensor, tokens: Tensor) -> Tensor:
    """kernel[token] for tokens (..., L) and a kernel (K, K) or (L, K, K): (..., L, K)."""
    return kernel[tokens] if kernel.ndim == 2 else kernel[torch.arange(len(kernel)), tokens]


def bridge(process: Process, x0: Tensor, state: State, s: Tensor, t: Tensor) -> Tensor:
    """q(z_s | z_t, x0) by Bayes' rule, float64 (..., K); all rows share their noise."""
    noise = _shared_noise(state)
    forward = transition(process, s, t, noise).transpose(-1, -2)
    joint = rows_of(channel(process, s, noise), x0) * rows_of(forward, state.tokens)
    return joint / joint.sum(-1, keepdim=True)


def bound_integrand(process: Process, loo: Tensor, x0: Tensor, state: State, t: Tensor) -> Tensor:
    """Jump rate into z times sum_{y != z} phi(q(y|x0)/q(z|x0), m(y)/m(z)), float64 (...).

    phi(x, y) = y - x + x log(x / y); loo (..., L, K) sums to one; t is a scalar; all rows share
    their noise.
    """
    z, noise = state.tokens[..., None], _shared_noise(state)
    rates = jump_rate(process, t, noise).expand(*state.tokens.shape, -1)
    rate = rates.gather(-1, z).squeeze(-1)
    kernel = channel(process, t, noise)
    given = rows_of(kernel, x0)
    model = torch.einsum("...k,...kj->...j", loo, kernel.expand(*loo.shape, -1))
    x, y = given / given.gather(-1, z), model / model.gather(-1, z)
    phi = y - x + torch.where(x > 0, x * (x / y).log(), 0.0)
    phi = phi.scatter(-1, z, 0.0)
    return torch.where(rate > 0, rate * phi.sum(-1), 0.0)


def _plus_identity(mass: Tensor, alpha: Tensor) -> Tensor:
    return alpha * torch.eye(mass.shape[-1], dtype=torch.float64) + mass[..., None, :]


def _shared_noise(state: State) -> Tensor | None:
    """The noise (L,) of states that all have the same."""
    return None if state.noise is None else state.noise.flatten(0, -2)[0]


def all_states(num_states: int, length: int) -> Tensor:
    """Every sequence, int64 (K^L, L), in the order of a flattened table."""
    return torch.cartesian_prod(*[torch.arange(num_states)] * length).reshape(-1, length)


def product_law(rows: Tensor) -> Tensor:
    """Joint law, (N, K^L), of independent positions with laws (N, L, K)."""
    joint = rows[:, 0]
    for i in range(1, rows.shape[1]):
        joint = (joint[:, :, None] * rows[:, i][:, None, :]).flatten(1)
    return joint


def embed(law: Tensor, process: Process) -> Tensor:
    """A table over V symbols as a law over the K^L states of the process, flat float64."""
    padding = [0, process.num_states - law.shape[0]] * law.ndim
    return torch.nn.functional.pad(law.double(), padding).flatten()


def noised_law(law: Tensor, process: Process, t: Tensor, noise: Tensor | None = None) -> Tensor:
    """The law of z_t when x0 follows the table `law`, flat float64 (K^L,); given the noise (L,)."""
    length = law.ndim
    table = embed(law, process).reshape([process.num_states] * length)
    kernels = channel(process, t, noise).expand(length, -1, -1)
    for kernel in kernels:
        table = torch.einsum("i...,ij->...j", table, kernel)  # axis 0 leaves, its noise comes last
    return table.flatten()


def every_noise(process: Process, length: int) -> list[Tensor | None]:
    """Every noise (L,) a sequence can have, all equally likely; [None] where none is kept."""
    if not process.noise_conditioned:
        return [None]
    return list(all_states(process.num_states, length))


def with_noise(tokens: Tensor, noise: Tensor | None) -> State:
    """States (N, L) that share their noise (L,)."""
    return State(tokens, None if noise is None else noise.expand_as(tokens))


def step_law(
    predictor: Predictor,
    kernel: Kernel,
    t: Tensor,
    s: Tensor,
    length: int,
    noise: Tensor | None = None,
) -> Tensor:
    """p(z_s | z_t) of a sampler step over all states, float64 (K^L, K^L), rows z_t."""
    states = with_noise(all_states(predictor.process.num_states, length), noise)
    times = t.expand(states.tokens.shape)
    prediction = predictor.predict(predictor.hidden(states, t[None]), states, times)
    return product_law(kernel.log_probs(prediction, s).exp())


def output_law(predictor: Predictor, kernel: Kernel, times: Tensor, length: int) -> Tensor:
    """The law that a sampler draws from, flat float64 (K^L,), averaged over the noise it keeps.

    Args:
        predictor: its network, as a function of the noisy state.
        kernel: one reverse transition.
        times: (steps + 1,), from noise to data.
        length: L.
    """
    process = predictor.process
    laws = []
    for noise in every_noise(process, length):
        pi = process.noise_law(times[0], noise)
        law = product_law(pi.expand(1, length, -1))[0]
        for t, s in pairwise(times):
            law = law @ step_law(predictor, kernel, t, s, length, noise)
        laws.append(law)
    return torch.stack(laws).mean(0)


def path_kl(law: Tensor, predictor: Predictor, kernel: Kernel, times: Tensor) -> Tensor:
    """KL in nats of the exact reverse path from the sampler's: the sum of E KL over the steps."""
    process, length = predictor.process, law.ndim
    states = all_states(process.num_states, length)
    total = torch.zeros((), dtype=torch.float64)
    noises = every_noise(process, length)
    for noise in noises:
        for t, s in pairwise(times):
            forward = product_law(rows_of(transition(process, s, t, noise), states))
            joint = noised_law(law, process, s, noise)[:, None] * forward  # rows z_s
            exact = joint / joint.sum(0)
            model = step_law(predictor, kernel, t, s, length, noise).T
            total += torch.where(joint > 0, joint * (exact / model).log(), 0.0).sum()
    return total / len(noises)


def entropy(law: Tensor) -> Tensor:
    """Entropy in nats of a table of any shape."""
    return torch.special.entr(law.double()).sum()


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the sum of absolute differences of two laws."""
    return (p - q).abs().sum() / 2


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats."""
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum()


def time_integral(law: Tensor, predictor: Predictor, rows: RowLoss, nodes: int = 30) -> Tensor:
    """Integral over t in (0, 1) of the expected loss of every sequence: nothing is sampled.

    The expectation over z is a sum; the integral is Gauss-Legendre in u, t = u^4 / (u^4 + (1 -
    u)^4), which tames the logarithm of the uniform process at the clean end and the square root of
    the hybrid one at the noisy end.

    Args:
        law: the table, (V,) * L.
        predictor: on a schedule that goes from alpha = 1 to 0.
        rows: loss in nats of each position, of a prediction and the clean tokens.
        nodes: of the quadrature.

    Returns:
        Nats, flat float64 (V^L,). For the bound at the exact posterior: -log p(x0), to 1e-6.
    """
    process = predictor.process
    clean = all_states(law.shape[0], law.ndim)
    points, weights = np.polynomial.legendre.leggauss(nodes)
    u, du = torch.from_numpy(points + 1) / 2, torch.from_numpy(weights) / 2
    odds = u**4 + (1 - u) ** 4
    grid, steps = u**4 / odds, du * 4 * (u * (1 - u)) ** 3 / odds**2
    total = torch.zeros(len(clean), dtype=torch.float64)
    noises = every_noise(process, law.ndim)
    for noise in noises:
        states = with_noise(all_states(process.num_states, law.ndim), noise)
        for t, dt in zip(grid, steps, strict=True):
            times = t.expand(states.tokens.shape)
            prediction = predictor.predict(predictor.hidden(states, t[None]), states, times)
            chance = product_law(rows_of(channel(process, t, noise), clean))
            for n, x0 in enumerate(clean):
                nats = rows(prediction, x0.expand_as(states.tokens)).sum(-1)
                total[n] += dt * torch.where(chance[n] > 0, chance[n] * nats, 0.0).sum()
    return total / len(noises)
