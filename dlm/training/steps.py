"""Parts of a training step: its noisy tokens, its sums, its gradients, the seed of dropout."""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm

from dlm.data import Batch
from dlm.denoiser import Context
from dlm.processes import Process, State
from dlm.random import Key


@final
class Window:
    """The batches of one optimizer step on this device, and what they summed to."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._sums: list[Tensor] = []  # loss, valid tokens, positions, more

    def add(self, batch: Batch, loss: Tensor, more: Tensor) -> None:
        """Add a batch with its loss, a float64 scalar, summed over tokens; `more` is summed too."""
        positions = torch.full_like(loss, batch.tokens.numel())
        self._rows.append(batch.rows)
        sums = torch.stack([loss, batch.valid.sum().to(loss), positions])
        self._sums.append(torch.cat([sums, more.to(loss)]))

    def sums(self) -> Tensor:
        """Loss in nats, valid tokens, positions, then the rest, of all batches, float64."""
        return torch.stack(self._sums).sum(0)

    def diverged(self, step: int) -> str:
        """The sentence for a loss or gradient that is not finite, in the step of this number."""
        batches = list(zip(self._rows, self._sums, strict=True))
        bad = [rows.tolist() for rows, sums in batches if not sums[0].isfinite()]
        rows = ", ".join(map(str, bad or [rows.tolist() for rows in self._rows]))
        return (
            f"training stopped at step {step}: the loss or its gradient is not finite (rows {rows} "
            "of the training data); the last checkpoint is from before it; try a smaller "
            "optimizer.lr, a longer lr.warmup_steps, or trainer.precision=32-true"
        )


def corrupt(process: Process, batch: Batch, t: Tensor, seed: int) -> State:
    """The noisy tokens (B, L) at times (B,), functions of (seed, row, t); padding stays clean."""
    key = Key(seed, batch.rows).fold("train")
    state = process.corrupt(batch.tokens, t[:, None], key=key)
    return process.pin(state, batch.tokens, ~batch.valid)


def scale_gradients(parameters: Iterable[Parameter], factor: Tensor) -> Tensor:
    """Multiply all gradients by a scalar; their norm after that."""
    grads = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(grads, factor.float())  # pyright: ignore[reportPrivateImportUsage]
    return get_total_norm(grads)


def known(batch: Batch, dropout: float, seed: int) -> Context:
    """What the network is told of the rows: their documents, and their classes but for a share.

    Which rows lose their class is a function of (seed, row).
    """
    if batch.condition is None:
        return Context(documents=batch.documents)
    dropped = Key(seed, batch.rows).fold("condition").uniform() < dropout
    return Context(batch.documents, torch.where(dropped, -1, batch.condition))


def seed_dropout(seed: int, batch: int, rank: int) -> None:
    """Seed the global stream, from which dropout draws, by the number of the batch and the rank.

    So a resumed run drops what the uninterrupted one would have dropped. Two devices do not drop
    what one device with the doubled batch does: dropout is the one draw that is not keyed by rows.
    """
    key = Key(seed, torch.tensor([batch])).fold("dropout", rank)
    torch.manual_seed(int(key.uniform(1).item() * 2**53))
