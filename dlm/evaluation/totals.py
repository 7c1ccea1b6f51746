"""From nats per sequence to the numbers reported: mean per token, interval, perplexity, bits.

Totals are six float64 sums over sequences. Adding the states of two totals gives what one process
that saw all sequences would have, so devices and batches change nothing but the last digits.
"""

import math
from dataclasses import asdict, dataclass
from typing import final

import torch
from torch import Tensor

from dlm.errors import UserError

INTERVAL = 1.959963984540054  # standard errors in half of a 95 % interval of the normal law
FEW_SEQUENCES = 2000  # below it, 8 draws a sequence: the draws then weigh less than the sequences
COUNTING = "every token of the text and one EOS a document; no BOS, no padding"


@final
@dataclass(frozen=True)
class Likelihood:
    """The bound and how it was made; `json()` gives the keys that `dlm evaluate` writes.

    Attributes:
        nelbo: negative ELBO in nats per token, prior and reconstruction included.
        nelbo_stderr: its standard error over sequences; None for one, which shows no spread.
        prior_kl: the prior term, nats per token.
        reconstruction: the reconstruction term, nats per token.
        ppl: exp(nelbo); like its bounds None where it is unknown or beyond a float.
        ppl_low: lower end of the 95 % interval.
        ppl_high: upper end of it.
        bits_per_byte: all nats in bits over the bytes of the text; None when those are unknown.
        bits_per_byte_low: lower end of the 95 % interval of the nats, in these units.
        bits_per_byte_high: upper end of it.
        tokens: tokens counted.
        sequences: sequences they came in.
        draws: draws of t a sequence.
        seed: seed of the draws.
        process: class of the noise process.
        bound: elbo, or maximal_coupling.
        comparable: whether the bound is tight at the exact posterior, so that perplexities compare.
        precision: as Lightning names it.
        counting: what counts as a token.
        steps: steps of the sampler; None, as the next three, if that bound was not asked for.
        nelbo_steps: the K-step bound, nats per token.
        nelbo_steps_stderr: its standard error.
        ppl_steps: exp(nelbo_steps).
    """

    nelbo: float
    nelbo_stderr: float | None
    prior_kl: float
    reconstruction: float
    ppl: float | None
    ppl_low: float | None
    ppl_high: float | None
    bits_per_byte: float | None
    bits_per_byte_low: float | None
    bits_per_byte_high: float | None
    tokens: int
    sequences: int
    draws: int
    seed: int
    process: str | None = None
    bound: str = "elbo"
    comparable: bool = True
    precision: str | None = None
    counting: str = COUNTING
    steps: int | None = None
    nelbo_steps: float | None = None
    nelbo_steps_stderr: float | None = None
    ppl_steps: float | None = None

    def json(self) -> dict[str, float | int | str | None]:
        """Plain values, never NaN or infinite; the keys of the K-step bound if it was asked for."""
        record = asdict(self)
        if self.steps is None:
            record = {key: value for key, value in record.items() if "steps" not in key}
        return record


@final
class LikelihoodTotals:
    """Sums over sequences; adding two states is what one process that saw all would have.

    The bound per token is a ratio of sums over sequences, r = sum x / sum w, so its variance is
    N / (N - 1) sum (x - r w)^2 / (sum w)^2 (the delta method). Draws of t are spread evenly over
    sequences, which this does not know: the interval is a little too wide rather than too narrow.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(6, dtype=torch.float64)  # N, x, w, xx, xw, ww

    def update(self, nats: Tensor, tokens: Tensor) -> None:
        """Add sequences: nats, float64 (B,), and numbers of tokens (B,); empty ones are left out.

        Raises:
            UserError: where the bound of a sequence is not finite.
        """
        w = tokens.to("cpu", torch.float64)
        x = nats.to("cpu", torch.float64)
        if not x.isfinite().all():
            raise UserError(
                "the bound of a sequence is not finite: the weights of this model have diverged, "
                "or the precision does not hold its logits; try an older checkpoint or precision=32"
            )
        self._sums += torch.stack([(w > 0).double(), x, w, x * x, x * w, w * w]).sum(1)

    def state(self) -> Tensor:
        """The sums, float64 (6,): all-reduce by addition, then `merge` the result into new ones."""
        return self._sums.clone()

    def merge(self, state: Tensor) -> None:
        """Add the state of other totals."""
        self._sums += state.to(self._sums)

    def mean(self) -> tuple[float, float | None]:
        """Nats per token and the standard error of that (None for a single sequence).

        Raises:
            UserError: where there is no token.
        """
        count, x, w, xx, xw, ww = self._sums.tolist()
        if w == 0:
            raise UserError("there is no token to evaluate; check the split and the packing")
        ratio = x / w
        if count < 2:
            return ratio, None
        spread = max(xx - 2 * ratio * xw + ratio * ratio * ww, 0.0)  # 0 up to rounding
        return ratio, math.sqrt(count / (count - 1) * spread) / w

    def result(self, num_bytes: int | None, draws: int, seed: int) -> Likelihood:
        """The likelihood of all sequences seen.

        Args:
            num_bytes: bytes of the original UTF-8 text, None if unknown.
            draws: draws of t a sequence had.
            seed: their seed.
        """
        mean, stderr = self.mean()
        half = None if stderr is None else INTERVAL * stderr
        count, _, w = self._sums[:3].tolist()
        bits = w / math.log(2) / num_bytes if num_bytes else None  # of one nat per token

        def per_byte(nats: float | None) -> float | None:
            return None if nats is None or bits is None else nats * bits

        low, high = (None, None) if half is None else (mean - half, mean + half)
        return Likelihood(
            nelbo=mean,
            nelbo_stderr=stderr,
            prior_kl=0.0,
            reconstruction=0.0,
            ppl=perplexity(mean),
            ppl_low=None if low is None else perplexity(low),
            ppl_high=None if high is None else perplexity(high),
            bits_per_byte=per_byte(mean),
            bits_per_byte_low=per_byte(low),
            bits_per_byte_high=per_byte(high),
            tokens=round(w),
            sequences=round(count),
            draws=draws,
            seed=seed,
        )


def perplexity(nats: float) -> float | None:
    """exp(nats); None beyond a float."""
    return math.exp(nats) if nats < 700 else None  # e^709 is the end of float64


def default_draws(num_sequences: int) -> int:
    """Draws of t a sequence: 8 below 2,000 sequences, else 1."""
    return 8 if num_sequences < FEW_SEQUENCES else 1
