"""The yardstick: head and bound written the usual way, over the full B x L x K.

The same mathematics as dlm's fused objectives, in the form and the precision of published code,
written anew: float64 for the uniform bound, whose digits cancel, float32 for the masked one.
Nothing in `dlm` uses this file.

The uniform one takes the leaner of the published forms, without a one-hot x0.

Source of the formulas: Sahoo et al. 2024, arXiv:2406.07524 (masked, "SUBS"); Schiff et al. 2024,
arXiv:2412.10193 (uniform); Sahoo et al. 2025, arXiv:2506.10892 (its form without a one-hot).
"""

import torch
from torch import Tensor


def absorbing_bound(
    logits: Tensor, tokens: Tensor, x0: Tensor, alpha: Tensor, mask_id: int
) -> Tensor:
    """Bound's integrand per token on the linear schedule, nats, shape (B, L).

    Args:
        logits: network output, (B, L, K).
        tokens: noisy tokens, (B, L).
        x0: clean tokens, (B, L).
        alpha: 1 - t, (B, 1).
        mask_id: the state MASK.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    no_mask = torch.zeros_like(logits[0, 0])
    no_mask[mask_id] = -1e6
    logits = logits + no_mask
    log_p = logits - torch.logsumexp(logits, -1, keepdim=True)
    open_ = tokens != mask_id
    carried = torch.full_like(log_p, -1e6).scatter(-1, tokens[..., None], 0.0)
    log_p = torch.where(open_[..., None], carried, log_p)
    return -log_p.gather(-1, x0[..., None]).squeeze(-1) / (1 - alpha)


def uniform_bound(logits: Tensor, tokens: Tensor, x0: Tensor, alpha: Tensor) -> Tensor:
    """Bound's integrand per token on the linear schedule, nats, (B, L); arguments as above."""
    k = logits.shape[-1]
    alpha = alpha.double()
    noise, clean = 1 - alpha, 1 - alpha + k * alpha
    log_model = (k * alpha[..., None] * logits.double().softmax(-1) + noise[..., None]).log()
    log_z = log_model.gather(-1, tokens[..., None]).squeeze(-1)
    log_x0 = log_model.gather(-1, x0[..., None]).squeeze(-1)
    total = log_model.sum(-1)
    span = clean.log() - noise.log()
    equal = noise / clean * (k * log_z - total - (k - 1) * span)
    other = (k - 1) * log_z - total + log_x0 + clean / noise * (log_z - log_x0 + span)
    same = tokens == x0
    divergence = torch.where(same, equal, other)
    exits = k / torch.where(same, clean, noise) - k * (-log_z).exp()
    return (divergence - exits) / (k * alpha)
