"""The exact posterior of a known law, as a predictor: every sampler and every bound runs on it
unchanged.

A law is a table: the joint probabilities of L tokens over V symbols, float64, shape (V,) * L. The
leave-one-out posterior of position i given noisy z is

    loo_i(v) ~ sum over x with x_i = v of p(x) prod_{j != i} q_t(z_j | x_j),

computed by enumeration of all V^L sequences, so tables are small (V^L up to about 1e5). Where z is
impossible under the law the posterior is undefined and the even one is given: such states carry no
probability.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dlm.denoiser import Context
from dlm.errors import UserError
from dlm.lab.exact import noise_mass
from dlm.processes import Prediction, Process, State


@final
class Oracle:
    """The exact leave-one-out posterior of a table.

    Args:
        law: joint probabilities, float64, (V,) * L, summing to 1.
        process: over V states, or V and MASK with mask_id = V.

    Raises:
        UserError: if the table does not fit the process.
    """

    time_conditioning = True

    def __init__(self, law: Tensor, process: Process) -> None:
        symbols = law.shape[0]
        expected = symbols + (process.mask_id is not None)
        if process.num_states != expected or process.mask_id not in (None, symbols):
            raise UserError(
                f"a law over {symbols} symbols needs a process over {symbols} states, or "
                f"{symbols + 1} with MASK as the last, got {process}"
            )
        self.process, self.symbols = process, symbols
        self.log_law = law.double().flatten().log()
        self.sequences = torch.cartesian_prod(*[torch.arange(symbols)] * law.ndim)
        self.sequences = self.sequences.reshape(-1, law.ndim)

    def passes(self, length: int) -> int:
        """One."""
        return 1

    def hidden(self, state: State, t: Tensor, context: Context | None = None) -> Tensor:
        """Log leave-one-out posterior, float64 (B, L, K); the times are one for all or (B,)."""
        tokens, length = state.tokens, self.sequences.shape[1]
        levels = t.reshape(-1)
        rows = [slice(None)] if len(levels) == 1 else [slice(n, n + 1) for n in range(len(levels))]
        parts = [
            self._evidence(state.at(at), level) for at, level in zip(rows, levels, strict=True)
        ]
        evidence = torch.cat(parts)
        result = torch.full((*tokens.shape, self.process.num_states), -torch.inf).double()
        for i in range(length):
            others = evidence[:, :, :i].sum(-1) + evidence[:, :, i + 1 :].sum(-1) + self.log_law
            for v in range(self.symbols):
                result[:, i, v] = others[:, self.sequences[:, i] == v].logsumexp(-1)
        impossible = result.amax(-1, keepdim=True) == -torch.inf
        clean = torch.arange(self.process.num_states) < self.symbols
        return torch.where(impossible & clean, 0.0, result).log_softmax(-1)

    def _evidence(self, state: State, level: Tensor) -> Tensor:
        """log q_t(z | x) of every sequence x and position, float64 (B, V^L, L)."""
        z = state.tokens[..., None]
        noise = noise_mass(self.process, level, state.noise).expand(*state.tokens.shape, -1)
        kept = self.process.schedule.alpha(level) * (self.sequences == state.tokens[:, None])
        return torch.log(kept + noise.gather(-1, z).squeeze(-1)[:, None])

    def predict(self, hidden: Tensor, state: State, t: Tensor) -> Prediction:
        """The rows as they are."""
        return Prediction(self.process, state, t, log_loo=hidden)
