"""Markov chains, seen or hidden.

What k random positions of a chain tell is told by neighbours: with B_g = sum_i I(X_i; X_{i+g}) and
w(k, g) the chance that two given positions g apart are both among the k and none between them is,

    H_k = k H_1 - sum_g w(k, g) B_g,      Z_j = sum_g (w(j, g) - w(j - 1, g)) B_g.

A hidden chain h with emissions E(h, v) has the leave-one-out posterior sum_h loo_i(h) E(h, v), that
of the hidden chain given the evidence sum_v E(h, v) e_j(v). Its entropy has no closed form.

Source: derived here; the hidden chain under masks is an oracle in Tang et al. 2026,
arXiv:2602.19619.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab.laws.base import Law, check_size
from dlm.lab.laws.contexts import ContextModel
from dlm.lab.laws.logs import log_matmul
from dlm.lab.laws.rows import Weights, probabilities
from dlm.random import sample_categorical
from dlm.samplers.curve import InformationCurve


@final
class MarkovChain(Law):
    """A homogeneous chain.

    Args:
        length: L.
        symbols: V.
        transition: rows v -> w, (V, V); `Lazy` for a reversible one.
        initial: weights of the first token, (V,); None: stationary.

    Raises:
        UserError: for weights that do not fit, or no single stationary law.
    """

    def __init__(
        self, length: int, symbols: int, transition: Weights, initial: Weights | None = None
    ) -> None:
        check_size(length, symbols)
        self.length, self.symbols = length, symbols
        self.transition, self.initial = _chain(symbols, transition, initial)
        self._model = ContextModel(length, [self.initial[None]], self.transition)

    @property
    def draws(self) -> int:
        """L."""
        return self.length

    def from_uniforms(self, u: Tensor) -> Tensor:
        """From left to right."""
        return self._model.sample(u)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Sum over transitions."""
        return self._model.log_prob(tokens)

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """Forward times backward messages."""
        return self._model.log_weights(log_evidence)

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """The last forward message."""
        return self._model.log_marginal(log_evidence)

    def exact_entropy(self) -> float:
        """By the chain rule."""
        return self._model.entropy()

    def exact_curve(self) -> InformationCurve:
        """By neighbours: O(L V^3 + L^2)."""
        gaps = neighbour_chances(self.length)
        values = np.diff(gaps, axis=0) @ self._pair_information().numpy()
        return InformationCurve((0.0, *np.maximum(values, 0.0).tolist()))

    def marginals(self) -> Tensor:
        """p(x_i = v), float64 (L, V)."""
        return self._model.marginals()

    def _pair_information(self) -> Tensor:
        """B_g for g = 1..L - 1, nats."""
        laws = self.marginals()
        entropies = torch.special.entr(laws).sum(-1)
        power, result = torch.eye(self.symbols, dtype=torch.float64), []
        for gap in range(1, self.length):
            power = power @ self.transition
            given = torch.special.entr(power).sum(-1)
            result.append(entropies[gap:].sum() - laws[:-gap].sum(0) @ given)
        return torch.stack(result) if result else torch.zeros(0, dtype=torch.float64)


def neighbour_chances(length: int) -> np.ndarray:
    """w(k, g), float64 (L, L - 1) for k = 1..L and g = 1..L - 1.

    w(k, 1) = k (k - 1) / (L (L - 1)), and each further position between must not be among the other
    k - 2.
    """
    if length == 1:
        return np.zeros((1, 0))
    k = np.arange(1, length + 1)[:, None]
    between = np.arange(length - 2)[None]
    left_out = np.maximum(length - k - between, 0) / (length - 2 - between)
    factors = np.concatenate([k * (k - 1) / (length * (length - 1)), left_out], axis=1)
    return np.cumprod(factors, axis=1)


@final
class HiddenMarkov(Law):
    """Tokens emitted by a hidden chain.

    Args:
        length: L.
        symbols: V.
        hidden: M states of the chain.
        transition: (M, M).
        emission: rows h -> v, (M, V).
        initial: weights of the first state, (M,); None: stationary.

    Raises:
        UserError: for weights that do not fit, no states, or no single stationary law.
    """

    def __init__(
        self,
        length: int,
        symbols: int,
        hidden: int,
        transition: Weights,
        emission: Weights,
        initial: Weights | None = None,
    ) -> None:
        check_size(length, symbols)
        if hidden < 1:
            raise UserError(f"a hidden chain needs at least one state, got hidden {hidden}")
        self.length, self.symbols, self.hidden = length, symbols, hidden
        self.transition, self.initial = _chain(hidden, transition, initial)
        self.emission = probabilities(emission, (hidden, symbols), "emission").contiguous()
        self._model = ContextModel(length, [self.initial[None]], self.transition)

    @property
    def draws(self) -> int:
        """Two a token: its state and itself."""
        return 2 * self.length

    def from_uniforms(self, u: Tensor) -> Tensor:
        """States, then tokens."""
        states = self._model.sample(u[:, : self.length])
        return sample_categorical(self.emission.log()[states], u[:, self.length :])

    def log_prob(self, tokens: Tensor) -> Tensor:
        """The marginal of states, given what each emitted."""
        return self._model.log_marginal(self.emission.log().T[tokens])

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """Leave-one-out posterior of the state, then its emission."""
        states = self._model.log_weights(self._of_states(log_evidence))
        rows = log_matmul(states.flatten(0, 1), self.emission)
        return rows.reshape(log_evidence.shape)

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """That of the states."""
        return self._model.log_marginal(self._of_states(log_evidence))

    def exact_entropy(self) -> None:
        """None."""
        return

    def exact_curve(self) -> None:
        """None."""
        return

    def marginals(self) -> Tensor:
        """p(x_i = v), float64 (L, V)."""
        return self._model.marginals() @ self.emission

    def _of_states(self, log_evidence: Tensor) -> Tensor:
        """log sum_v E(h, v) e_j(v), float64 (B, L, M)."""
        rows = log_matmul(log_evidence.flatten(0, 1), self.emission.T)
        return rows.reshape(*log_evidence.shape[:2], self.hidden)


def _chain(size: int, transition: Weights, initial: Weights | None) -> tuple[Tensor, Tensor]:
    rows = probabilities(transition, (size, size), "transition").contiguous()
    if initial is not None:
        return rows, probabilities(initial, (size,), "initial").contiguous()
    return rows, stationary(rows)


def stationary(transition: Tensor) -> Tensor:
    """The stationary law of a chain (V, V), float64 (V,).

    States that are left for ever have none of it; the others are eliminated one by one without a
    subtraction, which keeps the digits of rare ones.

    Raises:
        UserError: if there are several, because the chain falls apart.

    Source: Grassmann, Taksar & Heyman 1985, "Regenerative analysis and steady state distributions
    for Markov chains".
    """
    kept = _recurrent(transition)
    rows = transition[kept][:, kept]
    for n in reversed(range(1, len(rows))):
        rows[:n, n] /= rows[n, :n].sum()
        rows[:n, :n] += rows[:n, n, None] * rows[n, :n]
    weights = torch.ones(len(rows), dtype=torch.float64)
    for n in range(1, len(rows)):
        weights[n] = weights[:n] @ rows[:n, n]
    law = torch.zeros(len(transition), dtype=torch.float64)
    law[kept] = weights / weights.sum()
    return law


def _recurrent(transition: Tensor) -> Tensor:
    """The states to which all that they reach returns, bool (V,)."""
    reach = (transition > 0) | torch.eye(len(transition), dtype=torch.bool)
    for _ in range(len(transition).bit_length()):  # paths of twice the length each time
        reach = reach.double() @ reach.double() > 0
    recurrent = (reach.T | ~reach).all(-1)
    if not reach[recurrent][:, recurrent].all():
        raise UserError(
            "the transition has several stationary laws; say with initial where the chain begins"
        )
    return recurrent
