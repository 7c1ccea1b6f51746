"""The yardstick: head and bound written the usual way, over the full B x L x K.

The same mathematics as dlm's fused objectives, in the form and the precision of published code,
written anew: float64 for the uniform bound, whose digits cancel, float32 for the masked one.
Nothing in `dlm` uses this file.

Source of the formulas: Sahoo et al. 2024, arXiv:2406.07524 (masked, "SUBS"); Schiff et al. 2024,
arXiv:2412.10193, eq. 18 (uniform), as implemented by them and by those who built on them.
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
    logits = logits.float()
    no_mask = torch.zeros(logits.shape[-1], device=logits.device)
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
    alpha = alpha.double()[..., None]
    probs = logits.double().softmax(-1)
    x_bar = k * alpha * torch.nn.functional.one_hot(x0, k) + 1 - alpha
    model = k * alpha * probs + 1 - alpha
    x_bar_z = x_bar.gather(-1, tokens[..., None])
    model_z = model.gather(-1, tokens[..., None])
    ratios = x_bar / x_bar_z
    logs = model_z.log() - model.log() + x_bar.log() - x_bar_z.log()
    bracket = k / x_bar_z - k / model_z - (ratios * logs).sum(-1, keepdim=True)
    return -(bracket / (k * alpha)).squeeze(-1)
