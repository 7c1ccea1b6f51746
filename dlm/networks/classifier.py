"""A classifier of noisy text: the body of a `DiT` that sees the noise level, the mean, a matrix.

    h = body(vectors, level)        vectors [B, L, D], level [B]     h [B, L, D]
    log p(y | z) = log_softmax(head(mean over positions of h))       [B, C]

It takes embedded tokens, not tokens, so that guidance can differentiate it by its input. Their
vectors are normalised: a MASK of another length than the words' would hide from the gradient what a
word in its place would say. Padding is text to it: it is trained on whole rows.
"""

from typing import final

from torch import Tensor, nn

from dlm.errors import UserError
from dlm.networks.dit import DiT
from dlm.networks.layers import rms_norm


@final
class TextClassifier(nn.Module):
    """p_t(y | z) of noisy sequences; a `dlm.guidance.Classifier`.

    Args:
        num_states: K, as the process has.
        num_classes: C, at least 2.
        length: longest sequence.
        width: D, a multiple of 2 * heads.
        depth: number of blocks.
        heads: attention heads.
        dropout: on the output of attention and MLP.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        num_states: int,
        num_classes: int,
        length: int,
        width: int = 128,
        depth: int = 2,
        heads: int = 2,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"num_classes must be at least 2, got {num_classes}")
        self.body = DiT(
            num_states, length, width, depth, heads, time_conditioning=True, dropout=dropout
        )
        self.head = nn.Linear(width, num_classes)

    @property
    def table(self) -> Tensor:
        """The vectors that stand for the states, [K, D], each of root mean square 1."""
        return rms_norm(self.body.table)

    def forward(self, vectors: Tensor, level: Tensor) -> Tensor:
        """Log-probabilities of the classes, [B, C].

        Args:
            vectors: rows of the table for noisy tokens, [B, L, D].
            level: logit of alpha, [B], clamped as networks see it.
        """
        hidden = self.body.encode(vectors, level=level.to(vectors.dtype))
        return self.head(hidden.mean(1)).log_softmax(-1)
