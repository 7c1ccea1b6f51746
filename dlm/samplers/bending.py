"""Everything that bends a posterior before a draw: constraints, penalties of repetition, filters.

In this order: tokens that are not allowed lose their mass; tokens that stand elsewhere in the text
are penalised; tokens that would complete an n-gram that stands elsewhere are dropped; then
temperature, top-k, top-p, min-p and typical. All of it acts on one posterior, the leave-one-out
posterior or the denoiser (`filter_on`). For masks the two agree. For uniform noise they do not: the
denoiser holds the evidence of the token that is there, so a low temperature on it also makes noise
stick; on the leave-one-out posterior it does not. Restricting the support commutes with the
conversion, only the choice of the set differs. Any of it changes the law that is drawn from.

Repetition is judged by the tokens that are there before the step: tokens drawn at the same time do
not see each other.

Source: Keskar et al. 2019, arXiv:1909.05858 (repetition penalty); Paulus et al. 2017,
arXiv:1705.04304 (no repeated n-gram).
"""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.processes import Filter, Prediction, State
from dlm.samplers.filters import MinP, Temperature, TopK, TopP, Typical

Bent = Literal["loo", "denoiser"]


@final
class Bending:
    """The settings of a sampler that bend its posterior.

    Args:
        temperature, top_k, top_p, min_p, typical_p: see `dlm.samplers.filters`; 1.0 and None are
            off.
        repetition_penalty: log p of a token that stands elsewhere in the text is multiplied by
            this; 1.0 is off.
        no_repeat_ngram: n: no n-gram twice; None is off.
        filter_on: which posterior is bent.

    Raises:
        UserError: for a setting out of its range.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int | None = None,
        filter_on: Bent = "loo",
    ) -> None:
        if not (repetition_penalty >= 1 and math.isfinite(repetition_penalty)):
            raise UserError(
                f"repetition_penalty must be at least 1, got {repetition_penalty}; 1 is off"
            )
        if no_repeat_ngram is not None and no_repeat_ngram < 1:
            raise UserError(f"no_repeat_ngram must be at least 1, got {no_repeat_ngram}")
        self.filters: list[Filter] = [Temperature(temperature)]
        if temperature == 1.0:
            self.filters.clear()
        self.filters += [TopK(top_k)] if top_k is not None else []
        self.filters += [TopP(top_p)] if top_p is not None else []
        self.filters += [MinP(min_p)] if min_p is not None else []
        self.filters += [Typical(typical_p)] if typical_p is not None else []
        self.penalty, self.ngram = repetition_penalty, no_repeat_ngram
        self.on: Bent = filter_on

    def __call__(
        self,
        prediction: Prediction,
        state: State,
        chosen: Tensor,
        known: Tensor,
        allowed: Tensor | None = None,
    ) -> Prediction:
        """The bent prediction at chosen positions.

        Args:
            prediction: of the (N,) chosen positions, in row-major order.
            state: tokens (B, L).
            chosen: bool (B, L).
            known: bool (B, L), positions whose token counts as text.
            allowed: bool, broadcastable to (B, L, K); None: everything.
        """
        idle = not self.filters and self.penalty == 1.0 and self.ngram is None and allowed is None
        if idle:
            return prediction

        def bend(log_probs: Tensor) -> Tensor:
            if allowed is not None:
                shape = (*chosen.shape, log_probs.shape[-1])
                log_probs = _only(log_probs, allowed.expand(shape)[chosen])
            if self.penalty != 1.0:
                log_probs = self._penalised(log_probs, state.tokens, chosen, known)
            if self.ngram is not None:
                size = log_probs.shape[-1]
                log_probs = _drop(log_probs, _repeated(self.ngram, size, state, chosen, known))
            for each in self.filters:
                log_probs = each(log_probs)
            return log_probs

        return prediction.map(bend, on=self.on)

    def _penalised(
        self, log_probs: Tensor, tokens: Tensor, chosen: Tensor, known: Tensor
    ) -> Tensor:
        """Tokens that stand at another known position lose log-probability."""
        rows, columns = chosen.nonzero(as_tuple=True)
        counts = torch.zeros(len(tokens), log_probs.shape[-1], device=tokens.device)
        counts = counts.scatter_add(1, tokens, known.to(counts.dtype))[rows]
        own = known[rows, columns].to(counts.dtype)[:, None]
        counts = counts.scatter_add(1, tokens[rows, columns][:, None], -own)
        return torch.where(counts > 0, log_probs * self.penalty, log_probs).log_softmax(-1)


def _only(log_probs: Tensor, allowed: Tensor) -> Tensor:
    """The law among allowed tokens; even among them where the model gives them nothing."""
    kept = log_probs.masked_fill(~allowed, -torch.inf)
    impossible = kept.amax(-1, keepdim=True) == -torch.inf
    return torch.where(impossible & allowed, 0.0, kept).log_softmax(-1)


def _drop(log_probs: Tensor, dropped: Tensor) -> Tensor:
    """The law without some tokens; as it is where nothing would be left."""
    kept = log_probs.masked_fill(dropped, -torch.inf)
    empty = kept.amax(-1, keepdim=True) == -torch.inf
    return torch.where(empty, log_probs, kept).log_softmax(-1)


def _repeated(n: int, size: int, state: State, chosen: Tensor, known: Tensor) -> Tensor:
    """Bool (N, K): tokens that would complete an n-gram that stands elsewhere, all known."""
    tokens, places = state.tokens, chosen.nonzero().tolist()
    dropped = torch.zeros(len(places), size, dtype=torch.bool)
    texts, sure = tokens.tolist(), known.tolist()
    tables = {row: _completions(n, texts[row], sure[row]) for row, _ in places}
    for index, (row, column) in enumerate(places):
        text, certain = texts[row], sure[row]
        for offset in range(n):  # the place of the position in the n-gram
            start = column - offset
            others = [i for i in range(start, start + n) if i != column]
            if start < 0 or start + n > len(text) or not all(certain[i] for i in others):
                continue
            for token, where in tables[row].get((offset, *(text[i] for i in others)), ()):
                if where != start:
                    dropped[index, token] = True
    return dropped.to(tokens.device)


def _completions(n: int, text: list[int], certain: list[bool]) -> dict[tuple, list]:
    """Per place in the n-gram and its other tokens: the token there, and where it starts."""
    table: dict[tuple, list] = {}
    for start in range(len(text) - n + 1):
        if all(certain[start : start + n]):
            gram = text[start : start + n]
            for offset in range(n):
                others = (offset, *gram[:offset], *gram[offset + 1 :])
                table.setdefault(others, []).append((gram[offset], start))
    return table
