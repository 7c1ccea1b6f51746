"""The exact posterior of a known law, as a predictor: every sampler and every bound runs on it
unchanged.

Noise acts on each token alone, so a noisy sequence z is evidence e_j(v) = q_t(z_j | v) about each
token, and the leave-one-out posterior of position i is

    loo_i(v) ~ sum over x with x_i = v of p(x) prod_{j != i} q_t(z_j | x_j),

which the law computes (`dlm.lab.laws`). Where z is impossible under the law the posterior is
undefined and the even one is given: such states carry no probability.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dlm.denoiser import Context
from dlm.errors import UserError
from dlm.lab.exact import noise_mass
from dlm.lab.laws import Law, table_of
from dlm.processes import Prediction, Process, State


@final
class Oracle:
    """The exact leave-one-out posterior of a law.

    Args:
        law: a law of V symbols, or a table of its joint probabilities, float64, (V,) * L.
        process: over V states, or V and MASK with mask_id = V.

    Raises:
        UserError: if law and process do not fit.
    """

    time_conditioning = True

    def __init__(self, law: Law | Tensor, process: Process) -> None:
        self.law = law if isinstance(law, Law) else table_of(law)
        self.symbols = self.law.symbols
        expected = self.symbols + (process.mask_id is not None)
        if process.num_states != expected or process.mask_id not in (None, self.symbols):
            raise UserError(
                f"a law over {self.symbols} symbols needs a process over {self.symbols} states, or "
                f"{self.symbols + 1} with MASK as the last, got {process}"
            )
        self.process = process

    def passes(self, length: int) -> int:
        """One."""
        return 1

    def hidden(self, state: State, t: Tensor, context: Context | None = None) -> Tensor:
        """Log leave-one-out posterior, float64 (B, L, K); the times are one for all or (B,).

        Raises:
            UserError: if the sequences have another length than those of the law.
        """
        log_loo = self.law.log_posterior(self.log_evidence(state, t))
        extra = self.process.num_states - self.symbols
        return torch.nn.functional.pad(log_loo, (0, extra), value=-torch.inf)

    def predict(self, hidden: Tensor, state: State, t: Tensor) -> Prediction:
        """The rows as they are."""
        return Prediction(self.process, state, t, log_loo=hidden)

    def log_marginal(self, state: State, t: Tensor) -> Tensor:
        """log p_t(z) of whole sequences, float64 (B,); given the noise where that is kept."""
        return self.law.log_marginal(self.log_evidence(state, t))

    def log_evidence(self, state: State, t: Tensor) -> Tensor:
        """log q_t(z_j | v) for the V symbols, float64 (B, L, V): even but for v = z_j.

        Raises:
            UserError: if the sequences have another length than those of the law.
        """
        tokens = state.tokens
        if tokens.shape[-1] != self.law.length:
            raise UserError(
                f"the law has sequences of {self.law.length} tokens, got {tokens.shape[-1]}"
            )
        if tokens.numel() == 0:
            return torch.zeros(*tokens.shape, self.symbols, dtype=torch.float64)
        levels, index = t.reshape(-1).expand(len(tokens)).unique(return_inverse=True)
        noise = torch.empty(tokens.shape, dtype=torch.float64)
        for n, level in enumerate(levels):
            noise[index == n] = self._noise_at(state.at(index == n), level)
        kept = self.process.schedule.alpha(levels)[index, None]
        shown = tokens < self.symbols  # MASK is no symbol: it says the same of all
        even = noise.log()[..., None].expand(*tokens.shape, self.symbols)
        at_token = torch.where(shown, torch.log(kept + noise), noise.log())[..., None]
        return even.scatter(-1, tokens.clamp(max=self.symbols - 1)[..., None], at_token)

    def _noise_at(self, state: State, level: Tensor) -> Tensor:
        """b_t(z), float64 (B, L)."""
        mass = noise_mass(self.process, level, state.noise).expand(*state.tokens.shape, -1)
        return mass.gather(-1, state.tokens[..., None]).squeeze(-1)
