"""Independent tokens, and mixtures of such laws.

Given the component k a mixture is a product, so with m_kj = sum_v mu_kj(v) e_j(v),

    loo_i(v) ~ sum_k w_k prod_{j != i} m_kj mu_ki(v).

Its dual total correlation is at most log m for m components.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab.laws.base import Law, check_size
from dlm.lab.laws.logs import exclusive_sum, log_matmul
from dlm.lab.laws.rows import Weights, probabilities
from dlm.random import sample_categorical
from dlm.samplers.curve import InformationCurve


@final
class Product(Law):
    """Independent tokens.

    Args:
        length: L.
        symbols: V.
        weights: of the symbols, (V,) for all positions or (L, V); None: even.

    Raises:
        UserError: for weights that do not fit.
    """

    def __init__(self, length: int, symbols: int, weights: Weights | None = None) -> None:
        check_size(length, symbols)
        self.length, self.symbols = length, symbols
        self.log_rows = probabilities(weights, (length, symbols), "weights").log()

    @property
    def draws(self) -> int:
        """L."""
        return self.length

    def from_uniforms(self, u: Tensor) -> Tensor:
        """Each on its own."""
        columns = [sample_categorical(row, u[:, i]) for i, row in enumerate(self._expanded(len(u)))]
        return torch.stack(columns, -1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Sum over positions."""
        return self.log_rows[torch.arange(self.length), tokens].sum(-1)

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """The rows as they are, where the other tokens are possible."""
        others = exclusive_sum(self._masses(log_evidence), -1)
        return self.log_rows + others[..., None]

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """Sum over positions."""
        return self._masses(log_evidence).sum(-1)

    def exact_entropy(self) -> float:
        """Sum over positions."""
        return torch.special.entr(self.marginals()).sum().item()

    def exact_curve(self) -> InformationCurve:
        """Zero."""
        return InformationCurve((0.0,) * self.length)

    def marginals(self) -> Tensor:
        """p(x_i = v), float64 (L, V)."""
        return self.log_rows.exp()

    def _masses(self, log_evidence: Tensor) -> Tensor:
        return (log_evidence + self.log_rows).logsumexp(-1)

    def _expanded(self, count: int) -> list[Tensor]:
        return [row.expand(count, -1) for row in self.log_rows]


@final
class MixtureOfProducts(Law):
    """One of several laws of independent tokens.

    Args:
        length: L.
        symbols: V.
        components: m.
        rows: of the components, (m, 1, V) for all positions or (m, L, V).
        weights: of the components, (m,); None: even.
        varied: whether a family of `rows` differs between positions.

    Raises:
        UserError: for weights that do not fit, or no components.
    """

    def __init__(
        self,
        length: int,
        symbols: int,
        components: int,
        rows: Weights,
        weights: Weights | None = None,
        varied: bool = True,
    ) -> None:
        check_size(length, symbols)
        if components < 1:
            raise UserError(f"a mixture needs at least one component, got components {components}")
        self.length, self.symbols, self.components = length, symbols, components
        shape = (components, length if varied else 1, symbols)
        made = probabilities(rows, shape, "rows")
        self.rows = made.expand(components, length, symbols)
        self.log_shares = probabilities(weights, (components,), "weights").log()

    @property
    def draws(self) -> int:
        """One for the component, one a token."""
        return 1 + self.length

    def from_uniforms(self, u: Tensor) -> Tensor:
        """A component, then its tokens."""
        component = sample_categorical(self.log_shares.expand(len(u), -1), u[:, 0])
        columns = [
            sample_categorical(self.rows[:, i].log()[component], u[:, 1 + i])
            for i in range(self.length)
        ]
        return torch.stack(columns, -1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Sum over components."""
        chance = self.rows.log()[:, torch.arange(self.length), tokens].sum(-1)  # (m, N)
        return (chance + self.log_shares[:, None]).logsumexp(0)

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """Posterior of the component given the other tokens, then its row."""
        others = exclusive_sum(self._masses(log_evidence), 0) + self.log_shares  # (L, B, m)
        return log_matmul(others, self.rows.transpose(0, 1)).transpose(0, 1)

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """Sum over components."""
        return (self._masses(log_evidence).sum(0) + self.log_shares).logsumexp(-1)

    def exact_entropy(self) -> None:
        """None."""
        return

    def exact_curve(self) -> None:
        """None."""
        return

    def marginals(self) -> Tensor:
        """p(x_i = v), float64 (L, V)."""
        return torch.einsum("m,mlv->lv", self.log_shares.exp(), self.rows)

    def _masses(self, log_evidence: Tensor) -> Tensor:
        """log m_kj, float64 (L, B, m)."""
        return log_matmul(log_evidence.transpose(0, 1), self.rows.permute(1, 2, 0))
