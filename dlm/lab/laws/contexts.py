"""Laws in which a token depends on the k tokens before it: messages over contexts.

A context is the last k tokens (fewer at the beginning), numbered in base V. With evidence e_j(v),

    f_i(c) = sum over the tokens before i, in context c, of p(x_<i) prod_{j < i} e_j(x_j)
    g_i(c) = sum_v T_i(c, v) e_i(v) g_{i+1}(c v)
    loo_i(v) ~ sum_c f_i(c) T_i(c, v) g_{i+1}(c v)

so position i never sees its own evidence. All in logs: O(L V^{k+1}) a sequence.

Source: the forward-backward algorithm (Rabiner 1989, "A tutorial on hidden Markov models").
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dlm.lab.laws.logs import log_matmul
from dlm.random import sample_categorical


@final
class ContextModel:
    """Conditional laws T_i of a token given its context.

    Args:
        length: L.
        first: T_i for i < k, float64 (V^i, V): their contexts are shorter.
        kernel: T_i for i >= k, float64 (V^k, V), k >= 1.
    """

    def __init__(self, length: int, first: list[Tensor], kernel: Tensor) -> None:
        self.length, self.symbols, self.order = length, kernel.shape[1], len(first)
        self.first, self.kernel = first[:length], kernel.contiguous()
        rest = self.symbols ** (self.order - 1)  # contexts without their oldest token
        blocks = self.kernel.reshape(self.symbols, rest, self.symbols)
        self._forward = blocks.transpose(0, 1).contiguous()  # (rest, oldest, new)
        self._backward = blocks.permute(1, 2, 0).contiguous()  # (rest, new, oldest)

    def sample(self, u: Tensor) -> Tensor:
        """Sequences (N, L) from uniforms (N, L), a token at a time."""
        context = torch.zeros(len(u), dtype=torch.int64)
        tokens = []
        for i in range(self.length):
            tokens.append(sample_categorical(self._rows(i)[context].log(), u[:, i]))
            context = self._next(context, tokens[-1])
        return torch.stack(tokens, -1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """log p(x), float64 (N,)."""
        context = torch.zeros(len(tokens), dtype=torch.int64)
        total = torch.zeros(len(tokens), dtype=torch.float64)
        for i in range(self.length):
            total = total + self._rows(i)[context, tokens[:, i]].log()
            context = self._next(context, tokens[:, i])
        return total

    def log_weights(self, evidence: Tensor) -> Tensor:
        """Log leave-one-out weights, float64 (B, L, V), of evidence of that shape."""
        after = self._messages_back(evidence)
        result = torch.empty_like(evidence)
        before = evidence.new_zeros(len(evidence), 1)
        for i in range(self.length):
            expected = self._expected(before, i)
            weights = expected + after[i + 1]
            result[:, i] = weights.logsumexp(1) if weights.shape[1] > 1 else weights[:, 0]
            before = self._seen(expected, evidence[:, i])
        return result

    def log_marginal(self, evidence: Tensor) -> Tensor:
        """log sum_x p(x) prod_j e_j(x_j), float64 (B,)."""
        before = evidence.new_zeros(len(evidence), 1)
        for i in range(self.length):
            before = self._seen(self._expected(before, i), evidence[:, i])
        return before.logsumexp(-1)

    def contexts(self) -> list[Tensor]:
        """The law of the context before each position, float64 (V^min(i, k),)."""
        nothing = torch.zeros(1, self.symbols, dtype=torch.float64)
        before, laws = torch.zeros(1, 1, dtype=torch.float64), []
        for i in range(self.length):
            laws.append(before[0].exp())
            before = self._seen(self._expected(before, i), nothing)
        return laws

    def entropy(self) -> float:
        """H(X), nats: of every token given its context."""
        total = 0.0
        for i, law in enumerate(self.contexts()):
            total += (law @ torch.special.entr(self._rows(i)).sum(-1)).item()
        return total

    def marginals(self) -> Tensor:
        """p(x_i = v), float64 (L, V)."""
        return torch.stack([law @ self._rows(i) for i, law in enumerate(self.contexts())])

    def _rows(self, i: int) -> Tensor:
        return self.first[i] if i < self.order else self.kernel

    def _next(self, context: Tensor, token: Tensor) -> Tensor:
        """The number of the next context; the oldest token of a full one is dropped."""
        return (context * self.symbols + token) % self.symbols**self.order

    def _expected(self, before: Tensor, i: int) -> Tensor:
        """Over (rest of the context, token i), before its evidence, (B, rest, V)."""
        if i < self.order:
            return before[:, :, None] + self.first[i].log()
        old = before.unflatten(-1, (self.symbols, -1))  # (B, oldest, rest)
        if old.shape[2] == 1:
            return log_matmul(before, self._forward[0])[:, None]
        return log_matmul(old.permute(2, 0, 1), self._forward).transpose(0, 1)

    def _seen(self, expected: Tensor, evidence: Tensor) -> Tensor:
        return (expected + evidence[:, None]).flatten(1)

    def _messages_back(self, evidence: Tensor) -> list[Tensor]:
        """g_1..g_L as (B, rest, V) over (rest of the context, newest token); g_0 is not needed."""
        size, symbols = len(evidence), self.symbols
        width = symbols ** min(self.length, self.order)
        messages = [evidence.new_zeros(size, width // symbols, symbols)]
        for i in reversed(range(1, self.length)):
            seen = messages[-1] + evidence[:, i, None]
            if i < self.order:
                message = (seen + self.first[i].log()).logsumexp(-1)
            elif seen.shape[1] == 1:
                message = log_matmul(seen[:, 0], self._backward[0])
            else:
                message = log_matmul(seen.transpose(0, 1), self._backward)  # (rest, B, oldest)
                message = message.permute(1, 2, 0).flatten(1)
            messages.append(message.unflatten(-1, (-1, symbols)))
        return [messages[-1], *reversed(messages)]
