"""A random permutation: every symbol once.

Under masks the tokens shown are known and the rest is even over the symbols that are left. Under
noise that replaces tokens the sums are permanents of the matrix e_j(v). They are built up over sets
S of used symbols, f_i(S) = sum over v in S of f_{i-1}(S without v) e_i(v): 2^L sets, and only
sums of positive terms, where Ryser's formula would cancel digits.

Source: derived here.
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import combinations
from typing import NamedTuple, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab.laws.base import Law, check_size
from dlm.lab.laws.logs import batches, log_scatter, log_where
from dlm.samplers.curve import InformationCurve

_MOST_SUMMED = 16  # tokens: 2^16 sets


class _Sets(NamedTuple):
    """The sets of one size: their symbols, and where each set without one symbol stands.

    symbol (S, size); without (S, size), an index into the sets one smaller.
    """

    symbol: Tensor
    without: Tensor


@final
class Permutation(Law):
    """Even over the permutations of L = V symbols.

    Args:
        length: L.
        symbols: V; None: L.

    Raises:
        UserError: if symbols differ from length; and, asked for a posterior under noise that
            replaces tokens, for more than 16 of them.
    """

    def __init__(self, length: int, symbols: int | None = None) -> None:
        check_size(length, length if symbols is None else symbols)
        if symbols not in (None, length):
            raise UserError(
                f"a permutation has as many symbols as tokens, got {symbols} and {length}"
            )
        self.length, self.symbols = length, length

    @property
    def draws(self) -> int:
        """L."""
        return self.length

    def from_uniforms(self, u: Tensor) -> Tensor:
        """The order of the uniforms."""
        return u.argsort(-1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """-log L! of a permutation."""
        right = (tokens.sort(-1).values == torch.arange(self.length)).all(-1)
        return log_where(right, -self.exact_entropy())

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """Even over what the other tokens leave, or sums over sets."""
        shown = _shown(log_evidence)
        if shown is not None:
            return self._left_over(shown)
        return torch.cat([self._summed(part)[0] for part in self._parts(log_evidence)])

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """(L - k)! / L! if k different tokens are shown, or the permanent over L!."""
        shown = _shown(log_evidence)
        if shown is None:
            parts = [self._summed(part)[1] for part in self._parts(log_evidence)]
            return torch.cat(parts) - self.exact_entropy()
        free = self.length - shown.sum((1, 2))
        right = (shown.sum(1) <= 1).all(-1)
        chance = torch.lgamma(free.double() + 1) - self.exact_entropy()
        scale = log_evidence.amax(-1).sum(-1)
        return torch.where(right, chance + scale, -torch.inf)

    def exact_entropy(self) -> float:
        """log L!."""
        return math.lgamma(self.length + 1)

    def exact_curve(self) -> InformationCurve:
        """log L - log(L - j + 1)."""
        length = self.length
        return InformationCurve(tuple(math.log(length / (length - j)) for j in range(length)))

    def marginals(self) -> Tensor:
        """Even."""
        return torch.full((self.length, self.length), 1 / self.length, dtype=torch.float64)

    def _left_over(self, shown: Tensor) -> Tensor:
        """0 where no other position shows v, -inf elsewhere; -inf if the others show one twice."""
        others = shown.sum(1, keepdim=True) - shown
        possible = (others <= 1).all(-1, keepdim=True)
        return log_where((others == 0) & possible, 0.0)

    def _parts(self, log_evidence: Tensor) -> list[Tensor]:
        if self.length > _MOST_SUMMED:
            raise UserError(
                "a permutation under noise that replaces tokens needs sums over 2^length sets: "
                f"take a length of at most {_MOST_SUMMED}, not {self.length}, or masks"
            )
        largest = max(sets.symbol.numel() for sets in self._sets)
        return [log_evidence[at] for at in batches(len(log_evidence), largest)]

    def _summed(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B, L, L) and the log permanent (B,)."""
        size = len(evidence)
        before = [evidence.new_zeros(size, 1)]
        for i, (symbol, without) in enumerate(self._sets):
            terms = before[-1][:, without] + evidence[:, i][:, symbol]
            before.append(terms.logsumexp(-1))
        result = torch.empty_like(evidence)
        after = evidence.new_zeros(size, 1)
        for i, (symbol, without) in reversed(list(enumerate(self._sets))):
            terms = (before[i][:, without] + after[..., None]).flatten(1)
            result[:, i] = log_scatter(terms, symbol.flatten(), self.length)
            back = (after[..., None] + evidence[:, i][:, symbol]).flatten(1)
            after = log_scatter(back, without.flatten(), before[i].shape[1])
        return result, before[-1][:, 0]

    @cached_property
    def _sets(self) -> list[_Sets]:
        smaller: dict[tuple[int, ...], int] = {(): 0}
        found = []
        for size in range(1, self.length + 1):
            sets = list(combinations(range(self.length), size))
            without = [[smaller[s[:n] + s[n + 1 :]] for n in range(size)] for s in sets]
            found.append(_Sets(torch.tensor(sets), torch.tensor(without)))
            smaller = {s: n for n, s in enumerate(sets)}
        return found


def _shown(log_evidence: Tensor) -> Tensor | None:
    """1 at certain tokens, int64 (B, L, V); None if a position is neither certain nor even."""
    top, low = log_evidence.amax(-1), log_evidence.amin(-1)
    possible = log_evidence > -torch.inf
    certain = possible.sum(-1) == 1
    even = (top == low) & (top > -torch.inf) & (log_evidence.shape[-1] > 1)
    if not (certain | even).all():
        return None
    return (possible & certain[..., None]).long()
