"""A trained network on a law that is known: does the plan of its profile win, and by what it says?

Draws of a law (`configs/law/`) train a small masked network. `measure_dependence` profiles it on
fresh draws, and plans are compared three ways, for every number of calls:

    predicted   by the curve of the network, as `dlm profile` does
    forced      by running the plan over fresh draws (`plan_nats`), minus the entropy of the law,
                which is exact: the error of the network and of the steps together
    samples     mean of -log p(x) of what the plan writes, minus the entropy, p the law itself: a
                judge that knows the truth (-inf for a law with impossible sequences)

    python benchmarks/known_law.py [--law markov --set length=32 symbols=8 transition.stay=0.95]
        [--steps 3000] [--save]
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from training_step import RESULTS, commit, hardware, table

from dlm.cli.compose import compose
from dlm.data import Batch
from dlm.denoiser import Context, Denoiser
from dlm.evaluation.dependence import measure_dependence
from dlm.evaluation.plan_costs import MEASURED, PlanCosts
from dlm.lab.experiments.plans import Best
from dlm.lab.laws import Law
from dlm.networks import DiT
from dlm.objectives import Elbo
from dlm.parameterizations import Denoising
from dlm.processes import Absorbing
from dlm.random import Key
from dlm.samplers import Balanced, Cosine, Even, Minimax, Plan, Random, RevealSampler
from dlm.samplers.forced import plan_nats
from dlm.schedules import Linear
from dlm.spec import build

CALLS = (2, 4, 8)
PROFILED, FORCED = 512, 512  # fresh sequences
_BATCH = 64


class Value(NamedTuple):
    """A mean and 1.96 standard errors."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.half:.2f}"


def trained(law: Law, steps: int, rate: float) -> Denoiser:
    """A network of 64 x 2 after so many batches of fresh draws; AdamW, a linear decay."""
    torch.manual_seed(0)
    process = Absorbing(law.symbols + 1, law.symbols, Linear())
    net = DiT(law.symbols + 1, law.length, 64, 2, 2, time_conditioning=False)
    denoiser = Denoiser(net, process, Denoising()).train()
    optimizer = torch.optim.AdamW(denoiser.parameters(), rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1.0, (k + 1) / 100) * (1 - k / steps)
    )
    for k in range(steps):
        tokens, key = draws(law, _BATCH, 10 + k)
        t = ((torch.arange(_BATCH) + key.fold("t").uniform()[0]) / _BATCH).clamp(1e-3, 1 - 1e-3)
        state = process.corrupt(tokens, t[:, None], key=key.fold("noise"))
        valid = torch.ones_like(tokens, dtype=torch.bool)
        loss = Elbo()(denoiser, tokens, state, t, valid, Context()).loss / valid.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if k % 500 == 0 or k == steps - 1:
            print(f"step {k}: {loss.item():.4f} nats per token", flush=True)
    return denoiser.eval()


def draws(law: Law, count: int, seed: int) -> tuple[Tensor, Key]:
    """Sequences, and the key of their rows."""
    key = Key(seed, torch.arange(count))
    return law.sample(count, key=key.fold("text")), key


def compare(law: Law, denoiser: Denoiser, samples: int) -> list[list[str]]:
    """One row a plan and number of calls."""
    entropy = law.entropy().value
    tokens, key = draws(law, PROFILED, 1)
    valid = torch.ones_like(tokens, dtype=torch.bool)
    batches = [
        Batch(tokens[at], valid[at], None, key.rows[at])
        for at in torch.arange(PROFILED).split(_BATCH)
    ]
    costs = PlanCosts.of(measure_dependence(denoiser, batches), 400, 0)
    fresh, key = draws(law, FORCED, 2)
    plans: dict[str, Plan] = {
        "even": Even(), "cosine": Cosine(), "balanced": Balanced(), "minimax both": Minimax("both"),
        MEASURED: Best(costs.curve),
    }  # fmt: skip
    one = plan_nats(denoiser, fresh, Even(), law.length, key=key) - entropy
    print(f"error of the network, one position at a time: {value(one)} nats a sequence")
    rows = []
    for steps in CALLS:
        for name, plan in plans.items():
            forced = plan_nats(denoiser, fresh, plan, steps, key=key) - entropy
            sampler = RevealSampler(plan, Random(), steps=steps)
            drawn = sampler(
                denoiser, (samples, law.length), key=Key(3, torch.arange(samples))
            ).tokens
            judged = -law.log_prob(drawn) - entropy
            known = costs.cost(name, steps)
            rows.append([
                str(steps), name, f"{known.value:.2f} ({known.low:.2f} to {known.high:.2f})",
                str(value(forced - one)), str(value(judged)),
            ])  # fmt: skip
            print(" | ".join(rows[-1]), flush=True)
    return rows


def value(nats: Tensor) -> Value:
    """Mean and interval over sequences."""
    return Value(nats.mean().item(), 1.96 * (nats.std() / len(nats) ** 0.5).item())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--law", default="markov")
    changes = ["length=32", "symbols=8", "transition.stay=0.95"]
    parser.add_argument("--set", nargs="*", default=changes, help="settings of the law")
    parser.add_argument("--steps", type=int, default=3000, help="of the training")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--save", type=Path, nargs="?", const=RESULTS, help="into a folder")
    args = parser.parse_args()
    choice = [f"law@lab.law={args.law}", *(f"lab.law.{change}" for change in args.set)]
    spec = compose("lab", ["lab=plans", *choice]).plain("lab")["law"]
    law = build(spec, trust=("dlm",))
    best = {k: law.curve().expected_kl(law.curve().optimal_sizes(k)) for k in CALLS}
    even = {k: law.curve().cost(Even().waits(law.length, k, law.length)) for k in CALLS}
    denoiser = trained(law, args.steps, args.rate)
    rows = compare(law, denoiser, args.samples)
    head = (
        "calls",
        "plan",
        "predicted loss",
        "forced, measured loss",
        "samples, nats over the law",
    )
    lines = [
        "# Plans of a network trained on a known law",
        "",
        f"- law: `{json.dumps(spec)}`, entropy {law.entropy().value:.2f} nats",
        f"- commit {commit()}; {hardware('cpu')}; {args.steps} steps of {_BATCH} sequences",
        f"- the law itself, best sizes: {_shown(best)}; even sizes: {_shown(even)}",
        "",
        table(head, rows),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if args.save is not None:
        args.save.mkdir(parents=True, exist_ok=True)
        name = f"{datetime.date.today()}-known-law-{args.law}.md"
        (args.save / name).write_text(text, "utf-8")


def _shown(losses: dict[int, float]) -> str:
    return ", ".join(f"{np.round(nats, 2)} at {steps}" for steps, nats in losses.items())


if __name__ == "__main__":
    main()
