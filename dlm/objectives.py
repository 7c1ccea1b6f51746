"""Training objectives: row losses of a prediction, summed over a batch in chunks.

An objective maps a prediction and the clean token to nats per row; the base class runs the network
once, sends only rows whose loss is not known to be zero through the head, and never holds the
logits of the batch. Losses are SUMS over tokens: who trains divides once by the number of tokens of
the whole step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, final

import torch
from torch import Tensor

from dlm.denoiser import Context, Denoiser
from dlm.errors import UserError
from dlm.ops.fused_head import fused_head
from dlm.ops.triton_rows import RowKernel
from dlm.parameterizations import Parameterization
from dlm.processes import Prediction, Process, State
from dlm.processes.base import uncoupled
from dlm.processes.prediction import pick
from dlm.schedules import Schedule
from dlm.weightings import Weighting


class BatchLoss(NamedTuple):
    """Loss of a batch.

    loss: scalar, weighted sum over tokens in nats, differentiable.
    rows: float64 (B,), the same sum per sequence, detached.
    """

    loss: Tensor
    rows: Tensor


class Objective(ABC):
    """A row-wise loss and the driver that sums it."""

    @abstractmethod
    def rows(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """Loss in nats of each row, shape (...), for clean tokens x0 (...)."""

    def refusal(self, process: Process) -> str | None:
        """Why the loss is not defined for a process; None where it is."""
        return None

    def require(self, process: Process) -> None:
        """Raise `UserError` where the loss is not defined for the process."""
        if (refusal := self.refusal(process)) is not None:
            raise UserError(refusal)

    def snap(self, t: Tensor) -> Tensor:
        """The times at which the loss is defined, for drawn times (B,): all of them."""
        return t

    def kernel(self, denoiser: Denoiser, state: State, t: Tensor, x0: Tensor) -> RowKernel | None:
        """What computes `rows` at active positions (N,) from raw logits, where there is such."""
        return None

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        state: State,
        t: Tensor,
        weight: Tensor,
        context: Context | None = None,
    ) -> BatchLoss:
        """Sum of the row losses of one batch.

        Args:
            denoiser: run once on the noisy tokens.
            x0: clean tokens, int64 (B, L).
            state: noisy tokens (B, L).
            t: times, float64 (B,).
            weight: (B, L) factors; rows with weight 0 cost nothing.
            context: documents, if rows hold several.
        """
        self.require(denoiser.process)
        batch, length = x0.shape
        hidden = denoiser.hidden(state, t, context).flatten(0, 1)
        needed = denoiser.process.active(state) & (weight != 0)
        where = needed.nonzero(as_tuple=True)
        sequence = where[0]
        if len(sequence) < batch * length:
            hidden = hidden.index_select(0, sequence * length + where[1])
        weights = weight[where].double()
        levels = [value[sequence] for value in (t, *_levels(denoiser.process.schedule, t))]
        noisy = [field[where] for field in state if field is not None]
        loss, rows = fused_head(
            hidden,
            denoiser.backbone.head.weight,
            _row_loss(denoiser.process, denoiser.parameterization, self),
            weights,
            *(x0[where], *levels, *noisy),
            kernel=self.kernel(denoiser, State(*noisy), levels[0], x0[where]),
        )
        sums = torch.zeros(batch, dtype=torch.float64, device=x0.device)
        return BatchLoss(loss, sums.index_add(0, sequence, rows * weights))


def _levels(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return schedule.log_alpha(t), schedule.log_one_minus_alpha(t), schedule.dalpha(t)


@lru_cache(maxsize=64)
def _row_loss(process: Process, parameterization: Parameterization, objective: Objective):
    """The objective as a function of logits and what is known per row; one object, compiled once.

    Formulas ask their schedule; here it answers with levels computed once a batch, since in
    compiled code every logit would pay for them.
    """
    known = _Known(process.schedule)
    process = process.on(known)

    def rows(logits: Tensor, x0: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
        levels, state = rest[:3], State(*rest[3:])
        known.levels = (t, *levels)
        loss = objective.rows(parameterization(logits, process, state, t), x0)
        known.levels = None
        return loss

    return rows


@final
class _Known(Schedule):
    """A schedule that has been told its values at one tensor of times."""

    def __init__(self, base: Schedule) -> None:
        self.base = base
        self.levels: tuple[Tensor, ...] | None = None

    def log_alpha(self, t: Tensor | float) -> Tensor:
        told = self._told(t)
        return self.base.log_alpha(t) if told is None else told[1]

    def log_one_minus_alpha(self, t: Tensor | float) -> Tensor:
        told = self._told(t)
        return self.base.log_one_minus_alpha(t) if told is None else told[2]

    def dalpha(self, t: Tensor | float) -> Tensor:
        told = self._told(t)
        return self.base.dalpha(t) if told is None else told[3]

    def inverse(self, alpha: Tensor | float) -> Tensor:
        return self.base.inverse(alpha)

    def _told(self, t: Tensor | float) -> tuple[Tensor, ...] | None:
        levels = self.levels  # read once: another thread may be telling it other times
        return levels if levels is not None and levels[0] is t else None


@final
@dataclass(frozen=True)
class Elbo(Objective):
    """The negative ELBO: its expectation over t is a bound on -log p(x0)."""

    def rows(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """The integrand of the bound."""
        return prediction.process.nelbo(prediction, x0)

    def kernel(self, denoiser: Denoiser, state: State, t: Tensor, x0: Tensor) -> RowKernel | None:
        """The one of the process."""
        meaning = denoiser.parameterization.softmax_is
        return meaning and denoiser.process.nelbo_kernel(meaning, state, t, x0)


@final
@dataclass(frozen=True)
class CrossEntropy(Objective):
    """-log denoiser(x0), unweighted in t: minimised by the denoiser, not a likelihood bound."""

    def rows(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """Cross-entropy of the denoiser, in whichever currency the network speaks."""
        return -pick(prediction.log_denoiser, x0)

    def kernel(self, denoiser: Denoiser, state: State, t: Tensor, x0: Tensor) -> RowKernel | None:
        """The one of the process."""
        meaning = denoiser.parameterization.softmax_is
        return meaning and denoiser.process.cross_entropy_kernel(meaning, state, t, x0)


@final
@dataclass(frozen=True)
class DiscreteElbo(Objective):
    """The bound of the ancestral sampler with `steps` steps, even in t.

    A draw of t stands for the step it falls in: K KL(q(z_s | z_t, x0) || p(z_s | z_t)), t and s its
    ends. Its mean over t is the K-step bound, prior and reconstruction included; for K to infinity
    the continuous one.

    Args:
        steps: K.

    Raises:
        UserError: for fewer than one step.

    Source: Austin et al. 2021, arXiv:2107.03006 (D3PM).
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")

    def snap(self, t: Tensor) -> Tensor:
        """The noisy end of the step that t falls in."""
        return (t * self.steps).ceil().clamp(min=1) / self.steps

    def rows(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """K times the divergence of the step."""
        s = (prediction.t * self.steps - 1).round() / self.steps
        return self.steps * prediction.process.bridge_kl(prediction, x0, s)


@final
@dataclass(frozen=True)
class ScoreEntropy(Objective):
    """SEDD's score entropy: the bound as a function of the ratios m(y) / m(z) alone.

    Equal to the ELBO wherever the ratios come from a posterior; with parameterization=score it is
    defined for any positive ratios, and still a bound.

    Source: Lou et al. 2024, arXiv:2310.16834 (SEDD).
    """

    def rows(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """The integrand of the bound."""
        process, state, t = prediction.process, prediction.state, prediction.t
        ratios = Prediction(process, state, t, log_ratios=prediction.log_ratios)
        return process.nelbo(ratios, x0)


@final
@dataclass(frozen=True)
class MaximalCoupling(Objective):
    """The bound of sampler=maximal_coupling: valid, cheap, and for uniform noise not tight.

    Two entries of the denoiser a row instead of a sum over K. Its minimiser is not the denoiser's
    bound, so its value compares with no other; validation logs the bound of the process.

    Source: Gourevitch et al. 2026, arXiv:2605.22765.
    """

    def refusal(self, process: Process) -> str | None:
        """The law of the noise must not change with time."""
        return uncoupled(process, "use objective=elbo")

    def rows(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """The integrand of the bound."""
        return prediction.process.coupling_nelbo(prediction, x0)


@final
@dataclass(frozen=True)
class Reweighted(Objective):
    """The integrand of the bound times a factor: not a likelihood bound, often easier to train on.

    A factor of the noise level alone (`Simple`, `Sigmoid`) keeps the minimiser of a network that
    can represent it; one that looks at x0 (`Clip`, `Dynamic`) keeps it for masks and shifts it for
    other noise. Validation logs the bound itself.

    Args:
        weighting: the factor.
    """

    weighting: Weighting

    def refusal(self, process: Process) -> str | None:
        """The weighting decides."""
        return self.weighting.refusal(process)

    def rows(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """Factor times integrand."""
        process, state, t = prediction.process, prediction.state, prediction.t
        loss = process.nelbo(prediction, x0)
        factor = self.weighting.factor(process, state, x0, t)
        return torch.where(process.active(state), loss * factor.to(loss.dtype), 0.0)
