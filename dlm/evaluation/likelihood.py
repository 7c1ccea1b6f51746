"""How well a model predicts text: the negative ELBO with all its terms, and its standard error.

The bound is an integral over the noise level, and it does not depend on how the level moves in
time. So every model is put on the linear schedule, alpha = 1 - t, and integrated over all of (0,
1), whatever schedule it was trained with. At alpha = 0 the state is the prior itself and at alpha
= 1 the text itself: the prior term and the reconstruction term are 0, not forgotten. t stays
`T_MIN` = 1e-5 away from 0 and 1, as in training, since float32 losses lose their digits beyond.
The rate at T_MIN stands for those closer to 0: for absorbing noise that changes O(T_MIN^2), for
uniform noise, whose rate grows like log(1 / t) with a slope of at most 1, it leaves out at most
T_MIN nats per token.

Draw d of D of sequence n has t = (d + frac(U + n phi)) / D, phi the golden ratio and U a uniform:
stratified over the draws of a sequence and spread evenly over sequences, without knowing how many
there are. U is a function of the seed, the noise one of (seed, n, d): no number depends on the
batch a sequence sits in.

The K-step bound replaces the integral by the sum of KL(q(z_s | z_t, x0) || p(z_s | z_t)) over the
K steps of the ancestral sampler on the even grid of alpha; its last step, to alpha = 1, is the
reconstruction term. It exceeds the continuous bound by what the sampler loses by its finite steps.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from dlm.data import Batch
from dlm.denoiser import Context, Denoiser
from dlm.errors import UserError
from dlm.evaluation.totals import Likelihood, LikelihoodTotals, default_draws, perplexity
from dlm.objectives import Elbo, MaximalCoupling
from dlm.processes import Prediction, Process, State
from dlm.random import Key
from dlm.schedules import Linear
from dlm.times import T_MIN

Bound = Literal["elbo", "maximal_coupling"]
BOUNDS = {"elbo": Elbo(), "maximal_coupling": MaximalCoupling()}
GOLDEN = (math.sqrt(5) - 1) / 2  # the additive recurrence of least discrepancy
STEP_ENTRIES = 2**21  # entries of the dense float64 posterior made at a time by the K-step bound
AUTOCAST = {
    "32": None,
    "32-true": None,
    "bf16": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
    "16": torch.float16,
    "16-mixed": torch.float16,
}


@torch.no_grad()
def sequence_nelbo(
    denoiser: Denoiser, batch: Batch, *, draws: int, seed: int, bound: Bound = "elbo"
) -> Tensor:
    """Unbiased estimate of the negative ELBO of each sequence.

    Args:
        denoiser: the model, in evaluation mode; its schedule does not matter.
        batch: sequences; positions that are not valid are kept clean and not counted.
        draws: draws of t a sequence, at least 1.
        seed: of t and of the noise, together with `batch.rows`.
        bound: that of the process, or that of maximal coupling.

    Returns:
        Nats summed over valid tokens, mean over draws, float64 (B,).
    """
    linear, objective = denoiser.on(Linear()), BOUNDS[bound]
    context = Context(documents=batch.documents, condition=batch.condition)
    nats = torch.zeros(len(batch.rows), dtype=torch.float64, device=batch.tokens.device)
    for level, key in stratified(batch.rows, draws, seed, "likelihood"):
        t = level.clamp(T_MIN, 1 - T_MIN)
        state = noised(linear.process, batch, t, key)
        nats += objective(linear, batch.tokens, state, t, batch.valid, context).rows
    return nats / draws


@torch.no_grad()
def sequence_nelbo_steps(
    denoiser: Denoiser, batch: Batch, *, steps: int, draws: int, seed: int, bound: Bound = "elbo"
) -> Tensor:
    """Unbiased estimate of the bound of the K-step sampler, for each sequence.

    A draw takes one of the K steps, stratified as t is, and counts it K times.

    Args:
        denoiser: the model, in evaluation mode.
        batch: sequences, as for `sequence_nelbo`.
        steps: K, the steps of the sampler on the even grid of alpha.
        draws: steps drawn a sequence, at least 1.
        seed: of the steps and of the noise, together with `batch.rows`.
        bound: of the ancestral sampler, or of maximal coupling.

    Returns:
        Nats summed over valid tokens, mean over draws, float64 (B,).

    Source: Austin et al. 2021, arXiv:2107.03006, eq. 1.
    """
    linear = denoiser.on(Linear())
    nats = torch.zeros(len(batch.rows), dtype=torch.float64, device=batch.tokens.device)
    for level, key in stratified(batch.rows, draws, seed, "steps"):
        step = (level * steps).floor().clamp(max=steps - 1)
        t, s = 1 - step / steps, 1 - (step + 1) / steps
        nats += _step_kl(linear, batch, noised(linear.process, batch, t, key), t, s, bound)
    return nats * (steps / draws)


def evaluate(
    denoiser: Denoiser,
    batches: Iterable[Batch],
    *,
    num_bytes: int | None,
    num_sequences: int,
    draws: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    precision: str = "32",
    bound: Bound = "elbo",
) -> Likelihood:
    """The bound on a data set, on the device of the denoiser.

    Args:
        denoiser: the model; put in evaluation mode here, and back afterwards.
        batches: every sequence once, in batches of any size.
        num_bytes: bytes of the original UTF-8 text; None: no bits per byte.
        num_sequences: sequences in the data set, which decides the default number of draws.
        draws: draws of t a sequence; None: `default_draws`.
        seed: of the draws; equal seeds give equal numbers, whatever the batches.
        steps: also the bound of the ancestral sampler with so many steps; None: without.
        precision: of the network: 32, bf16-mixed or 16-mixed (GPU).
        bound: of the process and its ancestral sampler, or of maximal coupling.

    Raises:
        UserError: for draws or steps below 1, an unknown precision, no tokens, a bound that is not
            finite or not defined for the process.
    """
    draws = default_draws(num_sequences) if draws is None else draws
    if draws < 1 or (steps is not None and steps < 1):
        raise UserError(f"draws and steps must be at least 1, got draws={draws}, steps={steps}")
    BOUNDS[bound].require(denoiser.process)
    device = next(denoiser.parameters()).device
    continuous, discrete = LikelihoodTotals(), LikelihoodTotals()
    training = denoiser.training
    denoiser.eval()
    try:
        for batch in batches:
            batch = to_device(batch, device)
            tokens = batch.valid.sum(-1)
            with autocast(precision, device):
                nats = sequence_nelbo(denoiser, batch, draws=draws, seed=seed, bound=bound)
                continuous.update(nats, tokens)
                if steps is not None:
                    nats = sequence_nelbo_steps(
                        denoiser, batch, steps=steps, draws=draws, seed=seed, bound=bound
                    )
                    discrete.update(nats, tokens)
    finally:
        denoiser.train(training)
    result = replace(
        continuous.result(num_bytes, draws, seed),
        process=type(denoiser.process).__name__,
        bound=bound,
        comparable=bound == "elbo" or denoiser.process.shows_noise,
        precision=precision,
    )
    if steps is None:
        return result
    mean, stderr = discrete.mean()
    return replace(
        result,
        steps=steps,
        nelbo_steps=mean,
        nelbo_steps_stderr=stderr,
        ppl_steps=perplexity(mean),
    )


def stratified(rows: Tensor, draws: int, seed: int, purpose: str) -> Iterator[tuple[Tensor, Key]]:
    """Per draw: stratified numbers in [0, 1), float64 (B,), and the key of that draw's noise."""
    offset = Key(seed, torch.zeros_like(rows[:1])).fold(purpose).uniform()
    fraction = (offset + rows * GOLDEN) % 1.0
    for draw in range(draws):
        yield (draw + fraction) / draws, Key(seed, rows).fold(purpose, draw)


def noised(process: Process, batch: Batch, t: Tensor, key: Key) -> State:
    """The batch at times (B,); positions that are not valid stay clean."""
    state = process.corrupt(batch.tokens, t[:, None], key=key)
    return process.pin(state, batch.tokens, ~batch.valid)


def _step_kl(
    denoiser: Denoiser, batch: Batch, state: State, t: Tensor, s: Tensor, bound: Bound
) -> Tensor:
    """KL(q(z_s | z_t, x0) || p(z_s | z_t)) summed over valid tokens, nats, float64 (B,)."""
    process, shape = denoiser.process, batch.tokens.shape
    divergence = process.bridge_kl if bound == "elbo" else process.coupling_kl
    context = Context(documents=batch.documents, condition=batch.condition)
    hidden = denoiser.hidden(state, t, context)
    grid = torch.zeros(shape, dtype=torch.float64, device=batch.tokens.device)
    where = (batch.valid & process.active(state)).nonzero()
    for part in where.split(max(1, STEP_ENTRIES // process.num_states)):
        row, column = part.unbind(-1)
        here = state.at((row, column))
        loo = denoiser.predict(hidden[row, column], here, t[row]).log_loo
        # float64: a small KL is a sum of large terms that cancel, and it is counted `steps` times
        exact = Prediction(process, here, t[row], log_loo=loo.double())
        grid[row, column] = divergence(exact, batch.tokens[row, column], s[row])
    return grid.sum(-1)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """All of a batch on a device."""
    parts = {name: x.to(device) for name, x in batch._asdict().items() if x is not None}
    return batch._replace(**parts)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Autocast as Lightning would do it under this name."""
    if precision not in AUTOCAST:
        raise UserError(f"precision must be one of {', '.join(AUTOCAST)}, got {precision}")
    dtype = AUTOCAST[precision]
    if dtype is torch.float16 and device.type == "cpu":
        raise UserError(f"precision={precision} needs a GPU; use bf16-mixed or 32 on a CPU")
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
