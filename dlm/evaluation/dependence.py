"""How much the positions of a text tell about each other, as a model sees it: its dependence curve.

For processes with an absorbing view. With n positions known, chosen uniformly, and the others
hidden, the average log-loss of a hidden one is

    h_n = E[-log p(x_i | x_S)],  |S| = n, i not in S,        Z_{n+1} = h_0 - h_n    (nats)

Z is the information curve (`dlm.samplers.curve`) with the model in the place of the law. Revealing
s positions at once after n known ones costs s h_n where one at a time costs h_n + ... + h_{n+s-1},
so the left Riemann error of Z is exactly the excess of the K-step bound over that of one position
at a time, whether or not the model is right:

    KL(law || output) <= [sum_n h_n - H(law)] + sum_l (Z_l - Z_{l-1}) E R_l

The first bracket is the error of the network, the same for every plan, and is not measured here.

Each sequence has a random order (a function of seed and row); its first n positions are the known
ones, for every n of a grid that is dense at both ends. So h_0 - h_n is a difference within one
sequence, and errors are over sequences. Where few positions stay hidden more orders are drawn.

Source: Chen, Cong & Li 2026 (COLT) for the curve; the estimate and the identity are ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from dlm.data import Batch
from dlm.denoiser import Context, Predictor
from dlm.errors import UserError
from dlm.evaluation.likelihood import autocast, to_device
from dlm.processes import State
from dlm.random import Key
from dlm.samplers.curve import InformationCurve
from dlm.samplers.forced import hidden_nats

FEW = 8  # hidden positions, below which orders are added until so many were looked at


def known_counts(length: int) -> tuple[int, ...]:
    """The n that are measured: two an octave from either end, 0 to length - 1 among them."""
    near = {0, 1}
    for k in range(1, length.bit_length()):
        near |= {2**k, 3 * 2 ** (k - 1)}
    near = {n for n in near if n <= length // 2}
    return tuple(sorted(near | {length - 1 - n for n in near}))


def binomial(trials: int, chance: Tensor) -> Tensor:
    """The law of the number of successes, float64 (..., trials + 1), for chances (...)."""
    n = torch.arange(trials + 1, dtype=torch.float64)
    total = torch.tensor(float(trials), dtype=torch.float64)
    log_ways = (total + 1).lgamma() - (n + 1).lgamma() - (total - n + 1).lgamma()
    p = chance.double()[..., None]
    return (log_ways + torch.xlogy(n, p) + torch.special.xlog1py(total - n, -p)).exp()


@final
@dataclass(frozen=True, eq=False)
class Dependence:
    """Losses by the number of known positions, and the curve that they give.

    Args:
        length: L.
        known: the n that were measured, rising from 0 to L - 1.
        losses: float64 (N, len(known)): of each sequence, the mean of -log p over hidden positions
            and orders, nats.

    Raises:
        UserError: fewer than two sequences, or a loss that is not finite.
    """

    length: int
    known: tuple[int, ...]
    losses: np.ndarray

    def __post_init__(self) -> None:
        if len(self.losses) < 2:
            raise UserError(
                f"a dependence profile needs two sequences that fill the length of {self.length} "
                f"tokens, got {len(self.losses)}; use another split or a smaller length"
            )
        if not np.isfinite(self.losses).all():
            raise UserError("the loss of this model is not finite for some known positions")

    @property
    def loss(self) -> np.ndarray:
        """h_n at the measured n, nats, float64."""
        return self.losses.mean(0)

    @property
    def stderr(self) -> np.ndarray:
        """Standard errors over sequences of h_n."""
        return self.losses.std(0, ddof=1) / len(self.losses) ** 0.5

    @cached_property
    def gain_stderr(self) -> np.ndarray:
        """Standard errors over sequences of Z_{n+1} = h_0 - h_n at the measured n."""
        gains = self.losses[:, :1] - self.losses
        return gains.std(0, ddof=1) / len(gains) ** 0.5

    @cached_property
    def curve(self) -> InformationCurve:
        """Z_1 to Z_L: the nearest increasing values at the measured n, straight lines between.

        Its standard errors are those of the measured values, read in between.
        """
        values = self._values(self.losses.mean(0))
        stderr = np.interp(np.arange(self.length), self.known, self.gain_stderr)
        return InformationCurve(tuple(values.tolist()), tuple(stderr.tolist()))

    def resampled(self, times: int, seed: int) -> np.ndarray:
        """Curves of as many sequences drawn with replacement, float64 (times, L): the bootstrap."""
        count = len(self.losses)
        rows = torch.arange(times, device="cpu")
        u = Key(seed, rows).fold("bootstrap").uniform(count)
        chosen = (u * count).long().numpy()
        return np.stack([self._values(self.losses[rows].mean(0)) for rows in chosen])

    @property
    def all_losses(self) -> np.ndarray:
        """h_0 to h_{L-1} as the curve has them, nats, float64 (L,)."""
        return self.losses[:, 0].mean() - np.asarray(self.curve.values)

    @property
    def nelbo(self) -> float:
        """mean_n h_n: the bound of one position at a time, nats per token."""
        return float(self.all_losses.mean())

    @property
    def nelbo_stderr(self) -> float:
        """Standard error over sequences of that bound, nats per token."""
        places = np.arange(self.length)
        rows = [np.interp(places, self.known, losses).mean() for losses in self.losses]
        return float(np.std(rows, ddof=1) / len(rows) ** 0.5)

    def loss_by_level(self, levels: Tensor) -> Tensor:
        """g(alpha), the loss of all positions if hidden, nats per sequence, float64 like levels.

        Of a hidden position each other one is known with probability alpha: L times the binomial
        mixture of h_n, n <= L - 1. Its integral over (0, 1) is sum_n h_n, and a left Riemann sum
        of it is the bound of the ancestral sampler on that grid.
        """
        mixture = binomial(self.length - 1, levels)
        return self.length * (mixture @ torch.from_numpy(self.all_losses))

    def halves(self) -> tuple[Dependence, Dependence]:
        """The same of every other sequence, and of the rest.

        Raises:
            UserError: fewer than four sequences.
        """
        parts = self.losses[::2], self.losses[1::2]
        one, two = (Dependence(self.length, self.known, part) for part in parts)
        return one, two

    def _values(self, loss: np.ndarray) -> np.ndarray:
        gains = (loss[0] - loss).tolist()
        nodes = InformationCurve(tuple(gains), tuple(self.gain_stderr.tolist())).increasing()
        return np.interp(np.arange(self.length), self.known, nodes.values)


@torch.no_grad()
def measure_dependence(
    predictor: Predictor,
    batches: Iterable[Batch],
    *,
    draws: int = 1,
    seed: int = 0,
    precision: str = "32",
    device: torch.device | None = None,
) -> Dependence:
    """Measure a model on sequences without padding, all of one length.

    Args:
        predictor: in evaluation mode, with a process that reveals.
        batches: sequences; those with positions that are not valid are left out.
        draws: orders a sequence.
        seed: of the orders, together with the rows; the batches change nothing.
        precision: of the network: 32, bf16-mixed or 16-mixed (GPU).
        device: of the predictor; None: the CPU.

    Raises:
        UserError: a process without hidden positions, draws below 1, or too few sequences.
    """
    if not predictor.process.reveals:
        raise UserError(
            f"{type(predictor.process).__name__} noise hides no position, so it has no dependence "
            "curve; its steps have measured costs instead"
        )
    if draws < 1:
        raise UserError(f"draws must be at least 1, got {draws}")
    device = device or torch.device("cpu")
    parts, length = [], 0
    for batch in batches:
        batch = full_rows(to_device(batch, device))
        length = batch.tokens.shape[1]
        with autocast(precision, device):
            parts.append(sequence_losses(predictor, batch, draws=draws, seed=seed))
    losses = torch.cat(parts).cpu().numpy() if parts else np.empty((0, 1))
    return Dependence(length, known_counts(length), losses)


def full_rows(batch: Batch) -> Batch:
    """The sequences of a batch without padding."""
    full = batch.valid.all(-1)
    parts = {name: x[full] for name, x in batch._asdict().items() if x is not None}
    return batch._replace(**parts)


def sequence_losses(predictor: Predictor, batch: Batch, *, draws: int, seed: int) -> Tensor:
    """Mean loss of a hidden position of each sequence, nats, float64 (B, len(known_counts(L))).

    Args:
        predictor: the model.
        batch: sequences (B, L), all positions valid.
        draws: orders a sequence, more where few positions stay hidden.
        seed: of the orders.
    """
    (rows, length), key = batch.tokens.shape, Key(seed, batch.rows).fold("dependence")
    known = known_counts(length)
    repeats = [draws * max(1, FEW // (length - n)) for n in known]
    losses = torch.zeros(rows, len(known), dtype=torch.float64, device=batch.tokens.device)
    for draw in range(max(repeats) if rows else 0):
        rank = key.fold("order", draw).uniform(length).argsort(-1).argsort(-1)
        start = predictor.process.prior((rows, length), key=key.fold("prior", draw))
        for at, n in enumerate(known):
            if draw < repeats[at]:
                losses[:, at] += _hidden_loss(predictor, batch, start, rank >= n)
    return losses / torch.tensor(repeats, device=losses.device)


def _hidden_loss(predictor: Predictor, batch: Batch, start: State, hidden: Tensor) -> Tensor:
    """Mean of -log loo(x0) over the hidden positions (B, L), as a reveal sampler asks: (B,)."""
    context = Context(documents=batch.documents, condition=batch.condition)
    level = 1 - hidden.double().mean(-1)
    nats = hidden_nats(predictor, batch.tokens, start, hidden, hidden, level, context)
    return nats.sum(-1) / hidden.sum(-1)
