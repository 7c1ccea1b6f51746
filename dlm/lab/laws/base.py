"""A law: a distribution of token sequences on which everything can be computed.

Every noise process here noises tokens independently, so all that a noisy sequence z says is what
each token says: the evidence e_j(v) = q_t(z_j | v). From it and the law p,

    loo_i(v) ~ sum over x with x_i = v of p(x) prod_{j != i} e_j(x_j)      log_posterior
    p_t(z)   = sum over x of p(x) prod_j e_j(x_j)                          log_marginal

for any process at any time: `dlm.lab.Oracle` puts the two together. Entropy and information curve
are known exactly where a law has a closed form or few sequences, else they are estimated and say
their standard error. Everything is float64 and in nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab.laws.enumeration import MOST, all_tokens, subset_curve
from dlm.lab.laws.logs import batches
from dlm.random import Key
from dlm.samplers.curve import InformationCurve

_FEW = 100_000  # sequences, and (V + 1)^L of a curve: summed rather than sampled


class Estimate(NamedTuple):
    """A number in nats and its standard error, 0 where it is exact."""

    value: float
    stderr: float = 0.0


class Law(ABC):
    """A distribution of sequences of `length` tokens from {0, ..., symbols - 1}."""

    length: int
    symbols: int

    # -- what a law defines --------------------------------------------------------------------

    @property
    @abstractmethod
    def draws(self) -> int:
        """Uniforms that one sequence takes."""

    @abstractmethod
    def from_uniforms(self, u: Tensor) -> Tensor:
        """Sequences, int64 (N, L), as a function of uniforms in [0, 1), float64 (N, draws)."""

    @abstractmethod
    def log_prob(self, tokens: Tensor) -> Tensor:
        """log p(x) of tokens (N, L), float64 (N,)."""

    @abstractmethod
    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """`log_posterior` before it is normalised, up to a factor for each (b, i); all -inf where
        the other tokens are impossible.
        """

    @abstractmethod
    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """log sum_x p(x) prod_j e_j(x_j), float64 (B,): log p_t(z) for e_j = q_t(z_j | .)."""

    @abstractmethod
    def exact_entropy(self) -> float | None:
        """H(X) in nats by a formula; None: there is none."""

    @abstractmethod
    def exact_curve(self) -> InformationCurve | None:
        """Z_1..Z_L by a formula; None: there is none."""

    # -- what follows --------------------------------------------------------------------------

    def sample(self, count: int, *, key: Key) -> Tensor:
        """Draw sequences, int64 (N, L).

        Args:
            count: N.
            key: rows (N,); each sequence is a function of its own row.

        Raises:
            UserError: if the key has another number of rows.
        """
        if key.rows.numel() != count:
            raise UserError(f"{count} samples need a key with as many rows, got {len(key.rows)}")
        return self.from_uniforms(key.fold("law").uniform(self.draws))

    def log_posterior(self, log_evidence: Tensor) -> Tensor:
        """Log leave-one-out posterior of every position, normalised, float64 (B, L, V).

        Args:
            log_evidence: log e_j(v), float64 (B, L, V), -inf allowed. Position i does not use its
                own row.

        Returns:
            Where the other tokens are impossible the posterior is undefined, and the even one is
            given.
        """
        weights = self.log_weights(log_evidence)
        possible = weights.amax(-1, keepdim=True) > -torch.inf
        return torch.where(possible, weights, 0.0).log_softmax(-1)

    def table(self) -> Tensor:
        """All probabilities, float64 (V,) * L.

        Raises:
            UserError: for more than 1e6 sequences.
        """
        if self.symbols**self.length > MOST:
            raise UserError(
                f"a table of {self.symbols}^{self.length} sequences is more than {MOST:.0e}; take "
                "a shorter law or fewer symbols"
            )
        tokens = all_tokens(self.symbols, self.length)
        log_p = torch.cat([self.log_prob(part) for part in tokens.split(1 << 16)])
        return log_p.exp().reshape([self.symbols] * self.length)

    def marginals(self) -> Tensor:
        """p(x_i = v), float64 (L, V)."""
        return self.log_posterior(_nothing_known(1, self))[0].exp()

    def entropy(self, samples: int = 1024, seed: int = 0) -> Estimate:
        """H(X); `samples` and `seed` serve a law without formula and with many sequences."""
        exact = self.exact_entropy()
        if exact is not None:
            return Estimate(exact)
        if self.symbols**self.length <= _FEW:
            return Estimate(torch.special.entr(self.table()).sum().item())
        return sampled_entropy(self, samples, seed)

    def curve(self, samples: int = 64, seed: int = 0) -> InformationCurve:
        """Z_1..Z_L: mean of I(X_i; X_S) over |S| = j - 1 and i outside; see `entropy`."""
        exact = self.exact_curve()
        if exact is not None:
            return exact
        if (self.symbols + 1) ** self.length <= _FEW:
            return subset_curve(self.table())
        return sampled_curve(self, samples, seed)

    def total_correlation(self) -> Estimate:
        """sum_i H(X_i) - H(X) = sum_j Z_j."""
        curve = self.curve()
        if curve.stderr is None:
            return Estimate(curve.total_correlation)
        entropy = self.entropy()
        single = torch.special.entr(self.marginals()).sum().item()
        return Estimate(single - entropy.value, entropy.stderr)

    def dual_total_correlation(self) -> Estimate:
        """H(X) - sum_i H(X_i | X_-i) = L Z_L - sum_j Z_j."""
        curve = self.curve()
        if curve.stderr is None:
            return Estimate(curve.dual_total_correlation)
        total = self.total_correlation()
        value = self.length * curve.values[-1] - total.value
        return Estimate(value, float(np.hypot(self.length * curve.stderr[-1], total.stderr)))


def check_size(length: int, symbols: int) -> None:
    """Refuse a law without tokens or symbols.

    Raises:
        UserError: unless both are at least 1.
    """
    if length < 1 or symbols < 1:
        raise UserError(
            f"a law needs a length and symbols of at least 1, got length {length} and "
            f"{symbols} symbols"
        )


def point_evidence(tokens: Tensor, symbols: int) -> Tensor:
    """Evidence of tokens (N, L) that are seen: 0 at the token, -inf elsewhere, (N, L, V)."""
    evidence = torch.full((*tokens.shape, symbols), -torch.inf, dtype=torch.float64)
    return evidence.scatter(-1, tokens[..., None], 0.0)


def sampled_entropy(law: Law, samples: int, seed: int) -> Estimate:
    """Mean of -log p(x) over draws.

    Raises:
        UserError: for fewer than two.
    """
    _check_samples(samples)
    key = Key(seed, torch.arange(samples)).fold("entropy")
    nats = -law.log_prob(law.sample(samples, key=key))
    return Estimate(nats.mean().item(), (nats.std() / samples**0.5).item())


def sampled_curve(law: Law, samples: int, seed: int) -> InformationCurve:
    """Z_j as the mean of KL(p(X_i | x_S) || p(X_i)) over draws x, sets S and all i outside.

    The sets of one draw are the beginnings of one random order, so `samples` * L posteriors.

    Raises:
        UserError: for fewer than two draws.
    """
    _check_samples(samples)
    key = Key(seed, torch.arange(samples)).fold("curve")
    tokens = law.sample(samples, key=key)
    rank = key.fold("order").uniform(law.length).argsort(-1).argsort(-1)
    known = rank[:, None, :] < torch.arange(law.length)[:, None]  # (N, j - 1, L)
    tokens, known = tokens.repeat_interleave(law.length, 0), known.flatten(0, 1)
    prior = law.marginals().log()
    parts = []
    for at in batches(len(tokens), law.length * law.symbols):
        evidence = point_evidence(tokens[at], law.symbols)
        log_p = law.log_posterior(torch.where(known[at][..., None], evidence, 0.0))
        nats = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - prior), 0.0).sum(-1)
        hidden = ~known[at]
        parts.append((nats * hidden).sum(-1) / hidden.sum(-1))
    rows = torch.cat(parts).reshape(samples, law.length)
    rows[:, 0] = 0.0
    stderr = rows.std(0) / samples**0.5
    return InformationCurve(tuple(rows.mean(0).tolist()), tuple(stderr.tolist()))


def _check_samples(samples: int) -> None:
    if samples < 2:
        raise UserError(f"an estimate and its error need at least 2 samples, got {samples}")


def _nothing_known(count: int, law: Law) -> Tensor:
    return torch.zeros(count, law.length, law.symbols, dtype=torch.float64)
