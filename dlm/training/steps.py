"""Two parts of a training step beside its mathematics: the seed of dropout, and a bad end."""

import torch
from torch import Tensor

from dlm.random import Key


def seed_dropout(seed: int, batch: int, rank: int) -> None:
    """Seed the global stream, from which dropout draws, by the number of the batch and the rank.

    So a resumed run drops what the uninterrupted one would have dropped. Two devices do not drop
    what one device with the doubled batch does: dropout is the one draw that is not keyed by rows.
    """
    key = Key(seed, torch.tensor([batch])).fold("dropout", rank)
    torch.manual_seed(int(key.uniform(1).item() * 2**53))


def diverged(step: int, batches: list[tuple[Tensor, Tensor]]) -> str:
    """The sentence for a loss or gradient that is not finite.

    Args:
        step: the optimizer step that was not taken.
        batches: rows and sums of the batches of this device; the first of the sums is the loss.
    """
    bad = [rows.tolist() for rows, sums in batches if not sums[0].isfinite()]
    rows = bad or [rows.tolist() for rows, _ in batches]
    return (
        f"training stopped at step {step}: the loss or its gradient is not finite (rows "
        f"{', '.join(map(str, rows))} of the training data); the last checkpoint is from before "
        "it; try a smaller optimizer.lr, a longer lr.warmup_steps, or trainer.precision=32-true"
    )
