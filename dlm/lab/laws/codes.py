"""Laws of algebra: a checksum, codes of maximal distance, permutations.

Under the noise processes here the evidence of a token is even but for one symbol, e_j(v) = c_j +
s_j 1[v = z_j]. A checksum then has

    loo_i(v) ~ prod_{j != i} s_j 1[v = -sum_{j != i} z_j] + (prod m_j - prod s_j) / V,

m_j = V c_j + s_j, at any length and number of symbols; other evidence is convolved.

Source: derived here; checksums and such codes are the laws behind the lower bounds of Chen, Cong &
Li 2026.
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab.laws.atoms import atom_marginal, atom_weights
from dlm.lab.laws.base import Law, check_size
from dlm.lab.laws.enumeration import all_tokens
from dlm.lab.laws.logs import batches, exclusive_logsumexp, exclusive_sum, log_where
from dlm.samplers.curve import InformationCurve

_MOST_WORDS = 1_000_000  # of a code, for its posterior
_MOST_DENSE = 4096  # symbols of a checksum under evidence of any form: V x V sums


class Spikes(NamedTuple):
    """Evidence that is even but for one symbol, all (B, L).

    token: z; even: log c; spike: log s, -inf where there is none.
    """

    token: Tensor
    even: Tensor
    spike: Tensor


def spikes(log_evidence: Tensor) -> Spikes | None:
    """The evidence as c + s 1[v = z]; None if some of it has another form."""
    if log_evidence.shape[-1] == 1:
        even = torch.full_like(log_evidence[..., 0], -torch.inf)
        return Spikes(torch.zeros_like(even, dtype=torch.int64), even, log_evidence[..., 0])
    top, token = log_evidence.max(-1)
    high = log_evidence.scatter(-1, token[..., None], -torch.inf).amax(-1)
    low = log_evidence.scatter(-1, token[..., None], torch.inf).amin(-1)
    if not torch.equal(high, low):
        return None
    ratio = torch.where(high == -torch.inf, -torch.inf, high - top)
    return Spikes(token, high, top + torch.log(-torch.expm1(ratio)))


@final
class Checksum(Law):
    """Even over the sequences that sum to 0 mod V.

    Args:
        length: L, at least 2.
        symbols: V.

    Raises:
        UserError: for a length of 1.
    """

    def __init__(self, length: int, symbols: int) -> None:
        check_size(length, symbols)
        if length < 2:
            raise UserError(f"a checksum needs a length of at least 2, got {length}")
        self.length, self.symbols = length, symbols

    @property
    def draws(self) -> int:
        """All tokens but the last."""
        return self.length - 1

    def from_uniforms(self, u: Tensor) -> Tensor:
        """Even tokens, then the one that makes the sum 0."""
        tokens = (u * self.symbols).long()
        return torch.cat([tokens, -tokens.sum(-1, keepdim=True) % self.symbols], -1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """-(L - 1) log V where the sum is 0."""
        right = tokens.sum(-1) % self.symbols == 0
        return log_where(right, -self.exact_entropy())

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """In closed form where the evidence is even but for one symbol, else by convolution."""
        found = spikes(log_evidence)
        if found is None:
            return torch.cat([self._dense(log_evidence[at])[0] for at in self._parts(log_evidence)])
        mass, spike, gap = self._logs(found)
        even = self._rest(exclusive_sum(mass, -1), exclusive_logsumexp(gap, -1))
        spike = exclusive_sum(spike, -1)
        total = found.token.sum(-1, keepdim=True)
        place = ((found.token - total) % self.symbols)[..., None]
        at_place = torch.logaddexp(even, spike)[..., None]
        return even[..., None].expand_as(log_evidence).scatter(-1, place, at_place)

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """The same sums over all positions."""
        found = spikes(log_evidence)
        if found is None:
            parts = [self._dense(log_evidence[at])[1] for at in self._parts(log_evidence)]
            return torch.cat(parts) - self.exact_entropy()
        mass, spike, gap = self._logs(found)
        even, spike = self._rest(mass.sum(-1), gap.logsumexp(-1)), spike.sum(-1)
        right = found.token.sum(-1) % self.symbols == 0
        both = torch.where(right, torch.logaddexp(even, spike), even)
        return both - self.exact_entropy()

    def exact_entropy(self) -> float:
        """(L - 1) log V."""
        return (self.length - 1) * math.log(self.symbols)

    def exact_curve(self) -> InformationCurve:
        """Only the last token is known."""
        return InformationCurve((*[0.0] * (self.length - 1), math.log(self.symbols)))

    def marginals(self) -> Tensor:
        """Even."""
        return torch.full((self.length, self.symbols), 1 / self.symbols, dtype=torch.float64)

    def _logs(self, found: Spikes) -> tuple[Tensor, Tensor, Tensor]:
        """log m, log s and log log(m / s) of each position: near m = s only the last tells."""
        even = found.even + math.log(self.symbols)
        nothing = (even == -torch.inf) & (found.spike == -torch.inf)
        odds = torch.where(nothing, torch.inf, even - found.spike)
        gap = torch.where(odds < -30, odds, torch.nn.functional.softplus(odds, threshold=700).log())
        return torch.logaddexp(even, found.spike), found.spike, gap

    def _rest(self, mass: Tensor, gap: Tensor) -> Tensor:
        """log((prod m - prod s) / V) = log prod m + log(1 - exp(-exp gap)) - log V."""
        share = torch.where(gap < -30, gap, torch.log(-torch.expm1(-gap.exp())))
        return mass + share - math.log(self.symbols)

    def _parts(self, log_evidence: Tensor) -> list[slice]:
        if self.symbols > _MOST_DENSE:
            raise UserError(
                f"a checksum over {self.symbols} symbols needs evidence that is even but for one "
                f"symbol; with at most {_MOST_DENSE} it takes any"
            )
        return batches(len(log_evidence), self.symbols**2)

    def _dense(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B, L, V) and the marginal (B,), up to the number of sequences."""
        start = torch.full_like(evidence[:, 0], -torch.inf)
        start[:, 0] = 0.0
        after = [start]
        for i in reversed(range(1, self.length)):
            after.append(_convolve(after[-1], evidence[:, i]))
        result, before = torch.empty_like(evidence), start
        for i in range(self.length):
            rest = _convolve(before, after[self.length - 1 - i])
            result[:, i] = rest[:, -torch.arange(self.symbols) % self.symbols]
            before = _convolve(before, evidence[:, i])
        return result, before[:, 0]


def _convolve(a: Tensor, b: Tensor) -> Tensor:
    """Law of a sum mod V of independent parts, logs (B, V)."""
    index = torch.arange(a.shape[1])
    return (a[:, (index[:, None] - index) % len(index)] + b[:, None]).logsumexp(-1)


@final
class MdsCode(Law):
    """Even over a Reed-Solomon code: any `dimension` tokens are free and determine the others.

    Token i is the value at i of a random polynomial over the integers mod V.

    Args:
        length: L, at most V.
        symbols: V, a prime.
        dimension: k, from 1 to L.

    Raises:
        UserError: for numbers without such a code.
    """

    def __init__(self, length: int, symbols: int, dimension: int) -> None:
        check_size(length, symbols)
        prime = symbols > 1 and all(symbols % d for d in range(2, math.isqrt(symbols) + 1))
        if not prime or not 1 <= dimension <= length <= symbols:
            raise UserError(
                "a code needs a prime number of symbols and 1 <= dimension <= length <= symbols, "
                f"got {symbols} symbols, length {length}, dimension {dimension}"
            )
        self.length, self.symbols, self.dimension = length, symbols, dimension
        self._points = self._powers(dimension)
        self._checks = self._powers(length - dimension) * self._scales()  # of the dual code

    @property
    def draws(self) -> int:
        """One a coefficient."""
        return self.dimension

    def from_uniforms(self, u: Tensor) -> Tensor:
        """Values of a polynomial with even coefficients."""
        return (u * self.symbols).long() @ self._points % self.symbols

    def log_prob(self, tokens: Tensor) -> Tensor:
        """-k log V on the code."""
        inside = (tokens @ (self._checks % self.symbols).T % self.symbols == 0).all(-1)
        return log_where(inside, -self.exact_entropy())

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """By all code words."""
        return atom_weights(self._words(), log_evidence)

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """By all code words."""
        return atom_marginal(self._words(), log_evidence)

    def exact_entropy(self) -> float:
        """k log V."""
        return self.dimension * math.log(self.symbols)

    def exact_curve(self) -> InformationCurve:
        """Nothing until k tokens are known, then all."""
        known = [math.log(self.symbols)] * (self.length - self.dimension)
        return InformationCurve((*[0.0] * self.dimension, *known))

    def marginals(self) -> Tensor:
        """Even."""
        return torch.full((self.length, self.symbols), 1 / self.symbols, dtype=torch.float64)

    def _words(self) -> Tensor:
        if self.symbols**self.dimension > _MOST_WORDS:
            raise UserError(
                f"the posterior of a code sums over its {self.symbols}^{self.dimension} words, "
                f"more than {_MOST_WORDS:.0e}; take fewer symbols or a lower dimension"
            )
        return all_tokens(self.symbols, self.dimension) @ self._points % self.symbols

    def _powers(self, count: int) -> Tensor:
        """i^a mod V for a < count, int64 (count, L)."""
        rows = [[pow(i, a, self.symbols) for i in range(self.length)] for a in range(count)]
        return torch.tensor(rows, dtype=torch.int64).reshape(count, self.length)

    def _scales(self) -> Tensor:
        """1 / prod_{j != i} (i - j) mod V: scaled so, the dual of the code is one of its kind."""
        values = [
            pow(math.prod(i - j for j in range(self.length) if j != i), -1, self.symbols)
            for i in range(self.length)
        ]
        return torch.tensor(values, dtype=torch.int64)
