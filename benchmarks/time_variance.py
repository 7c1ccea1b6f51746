"""How much the law of the training times adds to the variance of a step's loss and gradient.

Batches of training text under a trained checkpoint, the same text and noise draws for every law:

    even, independent        one uniform a sequence
    even, low-discrepancy    a shifted grid over the batch, the default
    importance, rms          density sqrt(E l(t)^2), measured first, stratified
    importance, sd           density sd l(t), measured first, stratified
    fitted schedule          even low-discrepancy times on the schedule of even loss

Two batches of one law differ by twice its variance: (l_a - l_b)^2 / 2 for the loss per token, and
|g_a - g_b|^2 / 2 for its gradient. Means and medians over pairs of batches, with 95 % bootstrap
intervals. All laws estimate the same loss and gradient but for the fitted schedule's rounding.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlm.checkpoint import Loaded, load
from dlm.data import Batch, Blocks, batches, prepare
from dlm.data.packing import collate
from dlm.denoiser import Context, Denoiser
from dlm.evaluation.likelihood import noised
from dlm.evaluation.profile import Profile, measure_profile
from dlm.objectives import Elbo
from dlm.random import Key
from dlm.schedules import Linear
from dlm.spec import build
from dlm.times import ImportanceSampled, LowDiscrepancy, Times, UniformTimes

RESULTS = Path(__file__).parent / "results"
BINS, RESAMPLES = 32, 2000


def laws(denoiser: Denoiser, profile: Profile) -> dict[str, tuple[Denoiser, Times]]:
    """The model and the times of each law, on the linear schedule but for the fitted one."""
    linear = denoiser.on(Linear())

    def importance(centred: bool) -> Times:
        return ImportanceSampled(density=tuple(profile.density(Linear(), centred=centred)))

    return {
        "even, independent": (linear, UniformTimes()),
        "even, low-discrepancy": (linear, LowDiscrepancy()),
        "importance, rms": (linear, importance(False)),
        "importance, sd": (linear, importance(True)),
        "fitted schedule": (denoiser.on(profile.flat_schedule()), LowDiscrepancy()),
    }


def estimate(denoiser: Denoiser, times: Times, batch: Batch, step: int) -> tuple[float, Tensor]:
    """Loss per token of one step and its gradient, flat."""
    size = len(batch.rows)
    rows = torch.arange(step * size, (step + 1) * size)
    t, weight = times(rows, seed=0, batch_size=size)
    state = noised(denoiser.process, batch, t, Key(0, rows).fold("train"))
    weights = batch.valid * weight[:, None]
    context = Context(documents=batch.documents)
    loss = Elbo()(denoiser, batch.tokens, state, t, weights, context).loss / batch.valid.sum()
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return loss.item(), torch.cat([g.flatten() for g in grads])


def pairs(
    loaded: Loaded, blocks: Blocks, profile: Profile, args: argparse.Namespace
) -> dict[str, np.ndarray]:
    """For each law, (pairs, 3): loss, its squared deviation, that of the gradient."""
    order = np.random.default_rng(0).permutation(len(blocks))
    found: dict[str, list[tuple[float, float, float]]] = {}
    for pair in range(args.pairs):
        for name, (denoiser, times) in laws(loaded.denoiser, profile).items():
            two = []
            for step in (2 * pair, 2 * pair + 1):
                chosen = order[np.arange(step * args.size, (step + 1) * args.size) % len(order)]
                batch = collate([blocks[int(i)] for i in chosen], range(args.size))
                two.append(estimate(denoiser, times, batch, step))
            (left, g), (right, h) = two
            deviation = (g - h).double().square().sum().item() / 2
            values = ((left + right) / 2, (left - right) ** 2 / 2, deviation)
            found.setdefault(name, []).append(values)
    return {name: np.array(values) for name, values in found.items()}


def interval(values: np.ndarray, statistic, base: np.ndarray | None = None) -> str:
    """A statistic over pairs and its bootstrap interval; over that of `base`, pair by pair."""

    def at(index: np.ndarray) -> np.ndarray:
        top = statistic(values[index], axis=-1)
        return top if base is None else top / statistic(base[index], axis=-1)

    index = np.random.default_rng(1).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(at(index), [0.025, 0.975])
    return f"{at(np.arange(len(values))):.3g} ({low:.3g} to {high:.3g})"


def section(name: str, args: argparse.Namespace) -> str:
    """The table of one checkpoint."""
    loaded = load(name)
    source = build(loaded.meta["data"], path="data")
    packing = build(loaded.meta["packing"], path="packing")
    blocks = prepare(source, "train", loaded.tokenizer, packing, loaded.meta["length"])
    stride = max(1, len(blocks) // args.draws)
    profile = measure_profile(loaded.denoiser, batches(blocks, 32, world_size=stride), bins=BINS)
    found = pairs(loaded, blocks, profile, args)
    base = found["even, low-discrepancy"]
    head = ["law", "loss", "loss variance", "gradient variance, mean", "median over pairs"]
    head += ["loss variance, ratio", "gradient variance, ratio"]
    rows = [head, ["---"] * len(head)]
    for law, values in found.items():
        loss, squares, deviations = values.T
        rows.append(
            [
                law,
                interval(loss, np.mean),
                interval(squares, np.mean),
                interval(deviations, np.mean),
                interval(deviations, np.median),
                interval(squares, np.mean, base[:, 1]),
                interval(deviations, np.mean, base[:, 2]),
            ]
        )
    process = loaded.denoiser.process
    title = f"## {Path(name).name if '/' not in name else type(process).__name__.lower()}"
    flat = profile.flat_schedule()
    before, after = (100 * profile.spread_in_time(each) for each in (Linear(), flat))
    facts = (
        f"{type(process).__name__}, {process.num_states:,} states, trained on "
        f"{type(process.schedule).__name__}, step {loaded.meta.get('step', 'unknown')}. The bound "
        f"is {profile.bound().nelbo:.3f} +- {profile.bound().stderr:.3f} nats per token; the std "
        f"over t of its integrand is {before:.1f} % of it on the linear schedule, {after:.1f} % on "
        "the fitted one. Ratios are to the default, even low-discrepancy times."
    )
    return "\n\n".join([title, facts, "\n".join(f"| {' | '.join(cells)} |" for cells in rows)])


def header(args: argparse.Namespace) -> str:
    """Hardware, commit and settings."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line for line in lines if line.startswith("model name")), platform.processor())
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    return (
        "# Variance of a training step by the law of its times\n\n"
        f"- hardware: {name.split(':')[-1].strip()}, {os.cpu_count()} CPUs; torch "
        f"{torch.__version__}, {torch.get_num_threads()} thread(s), float32\n"
        f"- commit: {commit}\n- command: `python benchmarks/{Path(sys.argv[0]).name} "
        f"--pairs {args.pairs} --size {args.size} --draws {args.draws}`\n"
        f"- {args.pairs} pairs of batches of {args.size} sequences of the training text; density "
        f"and schedule from about {args.draws:,} sequences in {BINS} bins\n"
        "- gradient variance: the expected squared norm of the deviation of the gradient of the "
        "loss per token, not clipped"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Variance of a step by the law of its times.")
    parser.add_argument("checkpoints", nargs="*", default=["austen"], help="names or paths")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of batches a law")
    parser.add_argument("--size", type=int, default=16, help="sequences of a batch")
    parser.add_argument("--draws", type=int, default=2048, help="sequences of the profile")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-...")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = [header(args)]
    print(parts[0], flush=True)
    for name in args.checkpoints:
        parts.append(section(name, args))
        print(f"\n{parts[-1]}", flush=True)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.date.today()}-time_variance.md"
        path.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
