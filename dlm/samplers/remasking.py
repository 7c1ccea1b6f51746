"""Kernels that noise tokens again, so that a sampler can take back what it wrote.

With the denoiser D in the place of x0, any mixture of the bridge q(z_s | z_t, x0) and of fresh
noise q(z_s | x0) keeps the marginals of the process:

    q_kappa(z_s | z_t, x0) = kappa q(z_s | z_t, x0) + (1 - kappa) q(z_s | x0)           `Psi`

For noise that shows itself (masks, and u of the lifted process) the same family is written with the
probability sigma that a clean token is hidden again, 0 <= sigma <= sigma_max = min(1, (1 - alpha_s)
/ alpha_t), and a hidden one opens with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t):
`ReMDM`. Its sigma is a schedule: `Cap`, `Rescale`, `ByConfidence`, `Plateau`.

These kernels keep the marginals of each position exactly. Their joint error does not vanish with
the steps at fixed settings: every step hides and opens several tokens at once, however many steps
there are. What they buy is correction of the errors of a trained network.

Source: Wang et al. 2025, arXiv:2503.00307 (ReMDM); Deschenaux et al. 2026, arXiv:2602.21185 (Psi);
Gourevitch et al. 2026, arXiv:2605.22765 (lifted noise with refreshed u).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.processes import Prediction, Process, State
from dlm.processes.base import LOG_FLOOR
from dlm.processes.prediction import log_add, log_point
from dlm.random import sample_categorical
from dlm.samplers.kernels import Kernel


@final
@dataclass(frozen=True)
class Psi(Kernel):
    """With probability kappa the reverse step, else fresh noise on a draw from the denoiser.

    For every process. kappa = 1 is the ancestral step, kappa = 0 forgets z_t.

    Args:
        kappa: in [0, 1].
        low, high: levels alpha_s between which kappa counts; outside it is 1.

    Raises:
        UserError: for numbers outside [0, 1].
    """

    kappa: float = 0.95
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.kappa <= 1 or not 0 <= self.low <= self.high <= 1:
            raise UserError(
                "kappa must be in [0, 1] and 0 <= low <= high <= 1, got "
                f"kappa={self.kappa}, low={self.low}, high={self.high}"
            )

    def bound(
        self, process: Process, state: State, t: Tensor, s: Tensor, confidence: Tensor | None = None
    ) -> Tensor:
        """kappa b + (1 - kappa): fresh noise can come anywhere."""
        kappa = self._kappa(process, s)
        moves = torch.where(process.active(state), process.move_bound(state, t, s), 0.0)
        return kappa * moves + (1 - kappa)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """Both branches, each with its share of the bound."""
        process, state, t = prediction.process, prediction.state, prediction.t
        kappa = self._kappa(process, s).expand(state.tokens.shape)
        steps = kappa * torch.where(process.active(state), process.move_bound(state, t, s), 0.0)
        total = (steps + 1 - kappa).clamp(min=torch.finfo(torch.float64).tiny)
        fresh = process.log_marginal(prediction.log_denoiser, state, s.expand_as(t))
        dtype = fresh.dtype
        reverse = process.moved(prediction, s)
        log_steps = torch.log(steps / total).to(dtype)[..., None]
        return log_add(
            reverse + log_steps, fresh + torch.log((1 - kappa) / total).to(dtype)[..., None]
        )

    def _kappa(self, process: Process, s: Tensor) -> Tensor:
        alpha = process.schedule.alpha(s)
        return torch.where((alpha >= self.low) & (alpha <= self.high), self.kappa, 1.0).double()


class Remasking(ABC):
    """How likely a clean token is hidden again in a step: sigma."""

    @abstractmethod
    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, confidence: Tensor) -> Tensor:
        """In [0, sigma_max], float64, broadcastable to tokens (..., L).

        Args:
            alpha_t, alpha_s: levels before and after, broadcastable to the tokens.
            confidence: log-probability of each token when it was drawn, NaN where none was;
                (..., L).
        """


def sigma_max(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """min(1, (1 - alpha_s) / alpha_t): beyond it the marginals cannot be kept."""
    return ((1 - alpha_s) / alpha_t.clamp(min=math.exp(LOG_FLOOR))).clamp(max=1.0)


def _checked(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise UserError(f"eta must be in [0, 1], got {eta}; 0 never remasks")


@final
@dataclass(frozen=True)
class Cap(Remasking):
    """min(eta, sigma_max)."""

    eta: float = 0.02

    def __post_init__(self) -> None:
        _checked(self.eta)

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, confidence: Tensor) -> Tensor:
        """The same for all tokens."""
        return sigma_max(alpha_t, alpha_s).clamp(max=self.eta)


@final
@dataclass(frozen=True)
class Rescale(Remasking):
    """eta sigma_max."""

    eta: float = 0.05

    def __post_init__(self) -> None:
        _checked(self.eta)

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, confidence: Tensor) -> Tensor:
        """The same for all tokens."""
        return self.eta * sigma_max(alpha_t, alpha_s)


@final
@dataclass(frozen=True)
class ByConfidence(Remasking):
    """eta sigma_max, shared out among the tokens of a sequence by softmax(-p).

    p is the probability that the model gave a token when it drew it, so a doubtful token is hidden
    first. The shares sum to one: about one token a step is hidden at eta = 1.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        _checked(self.eta)

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, confidence: Tensor) -> Tensor:
        """Larger where the model was less sure; 0 where it drew nothing."""
        most = self.eta * sigma_max(alpha_t, alpha_s)
        drawn = ~confidence.isnan()
        weight = (-confidence.nan_to_num().double().exp()).exp() * drawn
        return most * weight / weight.sum(-1, keepdim=True).clamp(min=1e-300)


@final
@dataclass(frozen=True)
class Plateau(Remasking):
    """eta where the grid stands still (alpha_s = alpha_t), 0 elsewhere: the loop of ReMDM.

    Use it with a grid that has a plateau (`LoopGrid`).
    """

    eta: float = 0.02

    def __post_init__(self) -> None:
        _checked(self.eta)

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, confidence: Tensor) -> Tensor:
        """min(eta, sigma_max) on the plateau."""
        return torch.where(alpha_s == alpha_t, sigma_max(alpha_t, alpha_s).clamp(max=self.eta), 0.0)


@final
@dataclass(frozen=True)
class ReMDM(Kernel):
    """Remasking for noise that shows itself: absorbing and lifted.

    Args:
        remasking: sigma.
        switch: remask only at levels alpha_t of at least this much: 0.5 leaves the first half of
            the way alone.

    Raises:
        UserError: for a switch outside [0, 1], or another process.
    """

    remasking: Remasking
    switch: float = 0.0
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.switch <= 1:
            raise UserError(f"switch must be a level in [0, 1], got {self.switch}")

    def refusal(self, process: Process) -> str | None:
        """Only where a noisy token shows that it is noise."""
        if process.shows_noise:
            return None
        return (
            f"ReMDM hides clean tokens again, and {type(process).__name__} noise does not show "
            "which tokens are clean; use sampler=psi"
        )

    def bound(
        self, process: Process, state: State, t: Tensor, s: Tensor, confidence: Tensor | None = None
    ) -> Tensor:
        """sigma at clean tokens, the chance to open at hidden ones."""
        hidden = process.active(state)
        if confidence is None:  # by hand: as if every clean token had been certain
            confidence = torch.where(hidden, torch.nan, 0.0)
        alpha_t, alpha_s = process.schedule.alpha(t), process.schedule.alpha(s)
        sigma = self.remasking.sigma(alpha_t, alpha_s, confidence)
        sigma = torch.where(alpha_t >= self.switch, sigma, 0.0)
        noise = process.schedule.log_one_minus_alpha(t).exp()
        opens = (alpha_s - (1 - sigma) * alpha_t) / noise
        return torch.where(hidden, opens.clamp(max=1.0), sigma)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """Hidden: the denoiser. Clean: hidden again."""
        process, state = prediction.process, prediction.state
        log_denoiser = prediction.log_denoiser
        blank = process.blank(state, torch.ones_like(state.tokens, dtype=torch.bool))
        again = log_point(blank.tokens, log_denoiser)
        return torch.where(process.active(state)[..., None], log_denoiser, again)


@final
@dataclass(frozen=True)
class RefreshedBridge(Kernel):
    """Remasking of the lifted process: the bridge of uniform noise, and u drawn anew.

    x0 is drawn from the denoiser given (x, u), x_s from the bridge of the *uniform* process given
    (x_t, x0), and u from its law given (x_s, x0): x_s itself where x_s != x0, and where x_s = x0,
    x_s with probability 1 / (1 + (K - 1) alpha_s), else any other token. The joint law of (x0, x,
    u) at t goes to that at s. A clean token can become noise again.

    Raises:
        UserError: for another process than the lifted one.

    Source: Gourevitch et al. 2026, arXiv:2605.22765.
    """

    uniforms: ClassVar[int] = 6

    def refusal(self, process: Process) -> str | None:
        """Needs u."""
        if process.noise_conditioned:
            return None
        return (
            f"{type(process).__name__} noise keeps no noise token to refresh; this sampler is for "
            "process=lifted_uniform, use sampler=psi or sampler=ancestral"
        )

    def bound(
        self, process: Process, state: State, t: Tensor, s: Tensor, confidence: Tensor | None = None
    ) -> Tensor:
        """1: u is drawn anew everywhere."""
        return torch.ones(state.tokens.shape, dtype=torch.float64, device=state.tokens.device)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """The law of x_s alone: the average of the bridge over the denoiser."""
        return self._moved_from(prediction.log_denoiser, prediction, s)

    def _moved_from(self, log_d: Tensor, prediction: Prediction, s: Tensor) -> Tensor:
        """The law of x_s for a law of x0, (..., K)."""
        x, schedule, size = prediction.state.tokens, prediction.process.schedule, log_d.shape[-1]
        alpha_t, alpha_s = schedule.alpha(prediction.t), schedule.alpha(s)
        rho = alpha_t / alpha_s
        # per x0 = v the bridge is (rho 1[x] + (1 - rho) / K) (alpha_s 1[v] + (1 - alpha_s) / K) / q
        here = torch.nn.functional.one_hot(x, size).to(log_d.dtype)
        forward = rho[..., None] * here + ((1 - rho) / size)[..., None]
        norm = alpha_t[..., None] * here + ((1 - alpha_t) / size)[..., None]
        weight = log_d.exp() / norm
        law = alpha_s * weight + ((1 - alpha_s) / size) * weight.sum(-1, keepdim=True)
        return torch.log(forward * law)

    def draw(self, prediction: Prediction, s: Tensor, u: Tensor) -> State:
        """x_s and u together."""
        size = prediction.process.num_states
        x0 = sample_categorical(prediction.log_denoiser, u[..., 0])
        x = self._bridge(prediction, x0, s, u[..., 1:4])
        alpha_s = prediction.process.schedule.alpha(s)
        same = (x != x0) | (u[..., 4] < 1 / (1 + (size - 1) * alpha_s))
        other = (u[..., 5] * (size - 1)).long()
        return State(x, torch.where(same, x, other + (other >= x)))

    def joint(self, prediction: Prediction, s: Tensor) -> Tensor:
        """The law of (x_s, u), (..., K, K), for exact analyses."""
        log_d, size = prediction.log_denoiser, prediction.process.num_states
        alpha_s = prediction.process.schedule.alpha(s)
        same = 1 / (1 + (size - 1) * alpha_s)
        eye = torch.eye(size, dtype=log_d.dtype, device=log_d.device)
        kept = same * eye + (1 - same) / (size - 1) * (1 - eye)  # of u, where x_s = x0
        law = torch.zeros(*log_d.shape, size, dtype=log_d.dtype, device=log_d.device)
        for v in range(size):
            known = log_point(torch.full_like(prediction.state.tokens, v), log_d)
            x = self._moved_from(known, prediction, s).exp()
            u = eye.clone()
            u[v] = kept[v]
            law = law + log_d.exp()[..., v, None, None] * x[..., None] * u
        return law

    def _bridge(self, prediction: Prediction, x0: Tensor, s: Tensor, u: Tensor) -> Tensor:
        """The bridge of uniform noise by its three routes: clean, stay, noise."""
        x, size = prediction.state.tokens, prediction.process.num_states
        schedule = prediction.process.schedule
        alpha_t, alpha_s = schedule.alpha(prediction.t), schedule.alpha(s)
        rho = alpha_t / alpha_s
        hit = (x == x0).double()
        clean = alpha_s * (1 - rho) / size + rho * alpha_s * hit
        stay = rho * (1 - alpha_s) / size
        noise = (1 - rho) * (1 - alpha_s) / size
        where = u[..., 0] * (clean + stay + noise)
        drawn = (u[..., 1] * size).long()
        return torch.where(where < clean, x0, torch.where(where < clean + stay, x, drawn))
