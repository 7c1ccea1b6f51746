"""How noisy the gradient of the bound is, by noise level.

One sequence noised to level a gives the gradient g(a) of its integrand, in nats per token and unit
of a = 1 - alpha. In a bin of levels, with n sequences,

    signal^2 = |E g|^2  ~  |mean g|^2 - variance / n        (unbiased; can come out below 0)
    variance = E |g - E g|^2  ~  (sum |g|^2 - n |mean g|^2) / (n - 1)

so only a sum of gradients and a sum of squared norms are kept. Times that are drawn in proportion
to sqrt(E |g|^2) would give a training step the least variance; the loss that `dlm fit` measures is
the cheap stand-in for that. Gradients are taken of all parameters, or of the head alone where a
network is large.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from dlm.data import Batch
from dlm.denoiser import Context, Denoiser
from dlm.errors import UserError
from dlm.evaluation.likelihood import autocast, noised, stratified, to_device
from dlm.objectives import Elbo
from dlm.schedules import Linear
from dlm.times import T_MIN

SMALL = 20_000_000  # parameters, up to which all are differentiated


@final
@dataclass(frozen=True, eq=False)
class GradientNoise:
    """Moments of the gradient by bin of the noise level, all bins of one width.

    Args:
        sums: float64 (2, bins): sequences, and their squared norms.
        mean_square: float64 (bins,), |mean g|^2.
        of: "all parameters" or "the head".
    """

    sums: Tensor
    mean_square: Tensor
    of: str

    @property
    def edges(self) -> Tensor:
        """Of the bins of the noise level, float64 (bins + 1,)."""
        return torch.linspace(0, 1, self.sums.shape[1] + 1, dtype=torch.float64)

    @property
    def second_moment(self) -> Tensor:
        """E |g|^2, float64 (bins,)."""
        return self.sums[1] / self.sums[0]

    @property
    def variance(self) -> Tensor:
        """E |g - E g|^2, summed over parameters, float64 (bins,)."""
        n = self.sums[0]
        return ((self.second_moment - self.mean_square) * n / (n - 1)).clamp(min=0)

    @property
    def signal(self) -> Tensor:
        """|E g|, float64 (bins,); 0 where the noise hides it."""
        return (self.mean_square - self.variance / self.sums[0]).clamp(min=0).sqrt()


def measure_gradients(
    denoiser: Denoiser,
    batches: Iterable[Batch],
    *,
    bins: int = 10,
    draws: int = 1,
    seed: int = 0,
    precision: str = "32",
) -> GradientNoise:
    """Measure a model on sequences, each alone, on the device of the denoiser.

    Args:
        denoiser: the model; put in evaluation mode here, and back afterwards. Its gradients are
            left as they are, and its schedule does not matter.
        batches: sequences; each goes to `draws` levels, one pass forward and backward each.
        bins: of the noise level.
        draws: levels a sequence.
        seed: of levels and noise, together with the rows.
        precision: of the network: 32, bf16-mixed or 16-mixed (GPU).

    Raises:
        UserError: bins or draws below 1, or fewer than two gradients for a bin.
    """
    if bins < 1 or draws < 1:
        raise UserError(f"gradients need a bin and a draw at least, got {bins=}, {draws=}")
    device, linear = next(denoiser.parameters()).device, denoiser.on(Linear())
    parameters, of = _watched(denoiser)
    total = [[torch.zeros_like(p) for p in parameters] for _ in range(bins)]
    sums = torch.zeros(2, bins, dtype=torch.float64)
    training = denoiser.training
    denoiser.eval()
    try:
        for batch in batches:
            for one in _singly(to_device(batch, device)):
                for level, key in stratified(one.rows, draws, seed, "gradients"):
                    where = min(int(level * bins), bins - 1)
                    t = level.clamp(T_MIN, 1 - T_MIN)
                    with torch.enable_grad(), autocast(precision, device):
                        state = noised(linear.process, one, t, key)
                        context = Context(documents=one.documents, condition=one.condition)
                        loss = Elbo()(linear, one.tokens, state, t, one.valid, context).loss
                    grads = torch.autograd.grad(
                        loss / one.valid.sum(), parameters, materialize_grads=True
                    )
                    sums[0, where] += 1
                    sums[1, where] += _square(grads)
                    total[where] = [a + g for a, g in zip(total[where], grads, strict=True)]
    finally:
        denoiser.train(training)
    if sums[0].min() < 2:
        raise UserError(
            f"a bin of the gradients has fewer than two: {int(sums[0].sum())} draws are too few "
            f"for {bins} bins; raise sequences"
        )
    squares = torch.tensor([_square(parts) for parts in total], dtype=torch.float64)
    return GradientNoise(sums, squares / sums[0] ** 2, of)


def _watched(denoiser: Denoiser) -> tuple[list[nn.Parameter], str]:
    every = [p for p in denoiser.parameters() if p.requires_grad]
    if sum(p.numel() for p in every) <= SMALL:
        return every, "all parameters"
    return list(denoiser.backbone.head.parameters()), "the head"


def _square(parts: Iterable[Tensor]) -> float:
    return float(sum(part.double().square().sum() for part in parts))


def _singly(batch: Batch) -> Iterable[Batch]:
    """The sequences with tokens, each as a batch of its own."""
    for k in range(len(batch.rows)):
        parts = {name: x[k : k + 1] for name, x in batch._asdict().items() if x is not None}
        if parts["valid"].any():
            yield batch._replace(**parts)
