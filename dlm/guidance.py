"""Guidance: predictors that wrap a predictor and tilt what it says towards a class or a prompt.

`ClassifierFree` needs a network that knows both the conditional and the unconditional law,

    log loo^g = g log loo(. | c) + (1 - g) log loo(.)   + constant,

`ClassifierGuided` an unconditional one and a classifier of noisy text, p_t(y | z),

    log m^y(v) / m(z) = log m(v) / m(z) + g [log p_t(y | z with z_i = v) - log p_t(y | z)].

At g = 1 both are the conditional model: the second line is Bayes' rule for the noisy token of one
position given all the others, whatever the process. At g = 0 they are the unconditional one. Beyond
1 neither is the reverse of a noise process: a heuristic that trades variety for fidelity.

Which posterior the first line acts on. The weights g and 1 - g sum to one, so the evidence that the
observed token adds to the leave-one-out posterior, which is the same in both branches, comes out
once: combining denoisers is combining leave-one-out posteriors (a temperature, whose weights do not
sum to one, is another matter). Combining the reverse steps p(z_s | z_t), as Schiff et al. write it,
is not the same: the clean and the noise part of m_s mix before the power is taken, and under
absorbing noise even the chance that a mask opens would depend on the scale.

Source: Ho & Salimans 2022, arXiv:2207.12598; Schiff et al. 2024, arXiv:2412.10193 (discrete
guidance, first-order form); Nisonoff et al. 2024, arXiv:2406.01572 (guidance of jump rates).
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, final

import torch
from torch import Tensor

from dlm.denoiser import Context, Predictor, shown_level
from dlm.errors import UserError
from dlm.processes import Prediction, Process, State
from dlm.processes.prediction import pick

# A classifier's error turns into an error of the posterior divided by alpha: below this alpha its
# verdict is that at this alpha.
MIN_ALPHA = 1e-3
SEQUENCES = 1024  # given to a classifier at once by the exact form


class Classifier(Protocol):
    """p_t(y | z) of whole noisy sequences, as a function of embedded tokens."""

    @property
    def table(self) -> Tensor:
        """The vectors that stand for the states, (K, E)."""
        ...

    def __call__(self, vectors: Tensor, level: Tensor) -> Tensor:
        """Log-probabilities (B, C), normalised, nats.

        Args:
            vectors: rows of the table for noisy tokens, (B, L, E); differentiated by the
                first-order form.
            level: logit alpha, float64 (B,), clamped as networks see it.
        """
        ...


@final
class ClassifierFree:
    """Moves from the unconditional model to the conditional one and beyond.

    Args:
        predictor: knows conditions (`drop="condition"`) or anything (`drop="prompt"`).
        scale: g: 0 unconditional, 1 conditional, above 1 more so.
        drop: what the unconditional branch does not see. "condition": the class. "prompt": the
            tokens of the prompt, replaced by noise. For absorbing noise that is MASK, so the branch
            is the exact marginal; for uniform noise it is one draw of the prior a sequence, which a
            network near t = 0 takes for text: an approximation.

    Raises:
        UserError: a scale below 0.
    """

    def __init__(
        self,
        predictor: Predictor,
        scale: float,
        drop: Literal["condition", "prompt"] = "condition",
    ) -> None:
        self.scale = _checked(scale)
        self.predictor, self.drop = predictor, drop
        self.process: Process = predictor.process
        self.time_conditioning = predictor.time_conditioning

    def passes(self, length: int) -> int:
        """Two of the wrapped one."""
        return 2 * self.predictor.passes(length)

    def hidden(self, state: State, t: Tensor, context: Context | None = None) -> Tensor:
        """The hidden states of both branches, (B, L, 2 D).

        Raises:
            UserError: there is no prompt to drop.
        """
        context = context or Context()
        with_it = self.predictor.hidden(state, t, context)
        without = self.predictor.hidden(*self._dropped(state, t, context))
        return torch.cat((with_it, without), dim=-1)

    def predict(self, hidden: Tensor, state: State, t: Tensor) -> Prediction:
        """The combination, of rows where the branches see the same token."""
        given, free = (
            self.predictor.predict(part, state, t).log_loo for part in hidden.chunk(2, dim=-1)
        )
        return Prediction(self.process, state, t, log_loo=combine(given, free, self.scale))

    def _dropped(self, state: State, t: Tensor, context: Context) -> tuple[State, Tensor, Context]:
        if self.drop == "condition":
            return state, t, context._replace(condition=None)
        if context.frozen is None or context.key is None:
            raise UserError("there is no prompt to guide by: guidance.drop=prompt needs one")
        prior = self.process.prior(_shape(state.tokens), key=context.key)
        tokens, noise = torch.where(context.frozen, prior.tokens, state.tokens), state.noise
        if noise is not None and prior.noise is not None:
            noise = torch.where(context.frozen, prior.noise, noise)
        return State(tokens, noise), t, context


def combine(given: Tensor, free: Tensor, scale: float) -> Tensor:
    """softmax(scale given + (1 - scale) free) in logs, (..., K); `given` alone decides the support.

    At 0 and 1 the branch itself, bit for bit.
    """
    if scale == 1.0:
        return given
    if scale == 0.0:
        return free
    possible = (given > -torch.inf) & (free > -torch.inf)
    tilted = free + scale * torch.where(possible, given - free, 0.0)
    return torch.where(possible, tilted, given).log_softmax(-1)


@final
class ClassifierGuided:
    """Tilts a model by a classifier of noisy sequences; `Context.condition` names the class.

    Sequences without a class (-1) are left as they are. The wrapped model is run without condition.

    Args:
        predictor: the unconditional model.
        classifier: of noisy text, trained with the same process.
        scale: g: 0 the model, 1 the model given the class, above 1 more so.
        first_order: replace log p_t(y | z with z_i = v) by its Taylor series at z, linear in the
            one-hot input: one gradient of the classifier instead of K L passes.

    Raises:
        UserError: a scale below 0, or a process whose states hold more than tokens.
    """

    time_conditioning = True  # the classifier sees the level

    def __init__(
        self,
        predictor: Predictor,
        classifier: Classifier,
        scale: float,
        first_order: bool = False,
    ) -> None:
        self.scale = _checked(scale)
        self.predictor, self.classifier, self.first_order = predictor, classifier, first_order
        self.process: Process = predictor.process
        if self.process.noise_conditioned:
            raise UserError(
                f"a classifier does not see the noise tokens of {type(self.process).__name__}; "
                "use guidance without a classifier"
            )

    def passes(self, length: int) -> int:
        """Those of the wrapped one, and K L; or 2, a gradient: one pass forward, one backward."""
        mine = 2 if self.first_order else self.process.num_states * length
        return self.predictor.passes(length) + mine

    def hidden(self, state: State, t: Tensor, context: Context | None = None) -> Tensor:
        """Hidden states of the model and what the classifier says, (B, L, D + K) or (B, L, D + E).

        What it says is log p_t(y | z with z_i = v) for every i and v, or its gradient in the
        vectors of z.
        """
        context = context or Context()
        hidden = self.predictor.hidden(state, t, context._replace(condition=None))
        condition = context.condition
        if condition is None:
            condition = torch.full_like(state.tokens[:, 0], -1)
        level = shown_level(self.process, self._calm(t)).expand(len(condition))
        verdict = self._gradient if self.first_order else self._all
        said = verdict(state.tokens, level, condition.clamp(min=0))
        return torch.cat((hidden, said * (condition >= 0)[:, None, None]), dim=-1)

    def predict(self, hidden: Tensor, state: State, t: Tensor) -> Prediction:
        """The model's ratios, tilted, as a leave-one-out posterior.

        At a scale other than 1, or with a classifier that errs, the tilted ratios need not be those
        of any posterior under uniform noise; they are then bent to the nearest end.
        """
        table = self.classifier.table.detach()
        width = hidden.shape[-1] - (table.shape[1] if self.first_order else table.shape[0])
        base = self.predictor.predict(hidden[..., :width], state, t)
        said = hidden[..., width:]
        values = said @ table.T.to(said.dtype) if self.first_order else said
        tilt = self.scale * (values - pick(values, state.tokens)[..., None])
        calm = self._calm(t)
        ratios = Prediction(self.process, state, calm, log_loo=base.log_loo).log_ratios
        tilted = Prediction(self.process, state, calm, log_ratios=ratios + tilt)
        return Prediction(self.process, state, t, log_loo=tilted.log_loo)

    def _calm(self, t: Tensor) -> Tensor:
        """The time, or that of `MIN_ALPHA` where alpha is smaller."""
        alpha = self.process.schedule.alpha(t).clamp(min=MIN_ALPHA)
        return torch.where(alpha > MIN_ALPHA, t, self.process.schedule.inverse(alpha))

    @torch.no_grad()
    def _all(self, tokens: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """log p_t(y | z with z_i = v), (B, L, K), by running the classifier on all of them."""
        table = self.classifier.table
        (batch, length), num_states = _shape(tokens), len(table)
        vectors = table[tokens]
        count = max(1, SEQUENCES // num_states)
        parts: list[Tensor] = []
        for place in torch.arange(batch * length, device=tokens.device).split(count):
            row, column = place // length, place % length
            changed = vectors[row, None].repeat(1, num_states, 1, 1)
            changed[torch.arange(len(place), device=tokens.device), :, column] = table
            log_probs = self.classifier(
                changed.flatten(0, 1), level[row].repeat_interleave(num_states)
            )
            labels = condition[row].repeat_interleave(num_states)
            parts.append(pick(log_probs, labels).unflatten(0, (len(place), num_states)))
        return torch.cat(parts).unflatten(0, (batch, length))

    def _gradient(self, tokens: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """The gradient of log p_t(y | z) in the vectors of z, (B, L, E)."""
        with torch.enable_grad():
            vectors = self.classifier.table[tokens].detach().requires_grad_()
            chosen = pick(self.classifier(vectors, level), condition)
            (gradient,) = torch.autograd.grad(chosen.sum(), vectors)
        return gradient


def _checked(scale: float) -> float:
    if not (scale >= 0 and math.isfinite(scale)):
        raise UserError(f"guidance.scale must be at least 0, got {scale}; 1 is the model itself")
    return scale


def _shape(tokens: Tensor) -> tuple[int, int]:
    return tokens.shape[0], tokens.shape[1]
