"""An n-gram law fitted to a text: a law that looks like language and is known exactly.

    p(v | c) = (count(c v) + delta V base(v)) / (count(c) + delta V),

for a context c of up to n - 1 tokens; base is even (add-delta smoothing) or the same formula with
the oldest token of c left out (interpolated, down to an even base). The first tokens of a sequence
use the contexts that they have. Exact posteriors go over V^(n-1) contexts (`ContextModel`).

Source: MacKay & Peto 1995, "A hierarchical Dirichlet language model" (interpolation).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab.laws.base import Law, check_size
from dlm.lab.laws.contexts import ContextModel
from dlm.samplers.curve import InformationCurve

_EXCERPT = Path(__file__).with_name("austen.txt")
_MOST = 10_000_000  # V^n, entries of the table of conditional laws


@final
@dataclass(frozen=True)
class Letters:
    """The letters of a text as tokens: lower case, anything else a single space.

    Args:
        path: a text file; None: the opening of "Sense and Sensibility" (Jane Austen, 1811; public
            domain).
    """

    path: Path | None = None

    def text(self) -> str:
        """Letters and spaces.

        Raises:
            UserError: the file cannot be read.
        """
        path = _EXCERPT if self.path is None else self.path.expanduser()
        try:
            raw = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the text {str(path)!r}: {error}") from error
        return " ".join("".join(c if c.isalpha() else " " for c in raw.lower()).split())

    def alphabet(self, symbols: int) -> str:
        """The V - 1 most frequent characters, then one that stands for all others."""
        counts = Counter(self.text())
        ranked = sorted(counts, key=lambda c: (-counts[c], c))
        kept = ranked if len(ranked) <= symbols else [*ranked[: symbols - 1], "_"]
        return "".join(kept)

    def tokens(self, symbols: int) -> Tensor:
        """Places of the characters in the alphabet, int64 (N,)."""
        place = {c: n for n, c in enumerate(self.alphabet(symbols))}
        return torch.tensor([place.get(c, symbols - 1) for c in self.text()], dtype=torch.int64)


@final
class Ngram(Law):
    """Each token given the n - 1 before it, as in a text.

    Args:
        length: L.
        symbols: V.
        order: n, at least 2: 2 is a Markov chain.
        tokens: the text as tokens, (N,), or `Letters`.
        delta: pseudo-count of each symbol, above 0.
        smoothing: "add" spreads it evenly, "interpolated" as the next shorter context says.

    Raises:
        UserError: for an order below 2, more than 1e7 entries V^n, tokens outside [0, V), a text
            without n of them, or a delta that is not above 0.
    """

    def __init__(
        self,
        length: int,
        symbols: int,
        order: int,
        tokens: Tensor | Sequence[int] | Letters,
        delta: float = 0.1,
        smoothing: Literal["add", "interpolated"] = "interpolated",
    ) -> None:
        check_size(length, symbols)
        if order < 2 or symbols**order > _MOST or delta <= 0:
            raise UserError(
                f"an n-gram needs an order from 2 on, at most {_MOST:.0e} entries symbols^order "
                f"and a delta above 0, got order {order}, {symbols} symbols, delta {delta}"
            )
        made = tokens.tokens(symbols) if isinstance(tokens, Letters) else torch.as_tensor(tokens)
        if made.ndim != 1 or len(made) < order or made.is_floating_point():
            raise UserError(
                f"an n-gram of order {order} needs a text of at least as many tokens, whole numbers"
            )
        if int(made.min()) < 0 or int(made.max()) >= symbols:
            raise UserError(f"the text of the n-gram holds a token outside [0, {symbols})")
        self.length, self.symbols, self.order = length, symbols, order
        rows = [_fitted(made.long(), symbols, n, delta, smoothing) for n in range(order)]
        self._model = ContextModel(length, rows[:-1], rows[-1])

    @property
    def draws(self) -> int:
        """L."""
        return self.length

    def from_uniforms(self, u: Tensor) -> Tensor:
        """From left to right."""
        return self._model.sample(u)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Sum over tokens."""
        return self._model.log_prob(tokens)

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """Forward times backward messages over contexts."""
        return self._model.log_weights(log_evidence)

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """The last forward message."""
        return self._model.log_marginal(log_evidence)

    def exact_entropy(self) -> float:
        """By the chain rule."""
        return self._model.entropy()

    def exact_curve(self) -> InformationCurve | None:
        """None."""
        return

    def marginals(self) -> Tensor:
        """p(x_i = v), float64 (L, V)."""
        return self._model.marginals()


def _fitted(tokens: Tensor, symbols: int, context: int, delta: float, smoothing: str) -> Tensor:
    """p(v | c) for all contexts of so many tokens, float64 (V^context, V)."""
    base = torch.full((1, symbols), 1 / symbols, dtype=torch.float64)
    if smoothing == "interpolated" and context:
        shorter = _fitted(tokens, symbols, context - 1, delta, smoothing)
        base = shorter.repeat(symbols, 1)  # the oldest token is the most significant digit
    windows = tokens.unfold(0, context + 1, 1)
    place = windows @ symbols ** torch.arange(context, -1, -1)
    counts = torch.bincount(place, minlength=symbols ** (context + 1)).double()
    counts = counts.reshape(-1, symbols)
    mass = delta * symbols
    return (counts + mass * base) / (counts.sum(-1, keepdim=True) + mass)
