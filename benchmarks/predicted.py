"""Predicted against measured: what `dlm profile` says of plans, on other text and in samples.

    python benchmarks/predicted.py force OUT.json --checkpoint austen --profile austen.json
    python benchmarks/quality.py generate RUNS austen=austen --settings "sampler=reveal plan=even"
    python benchmarks/quality.py judge RUNS --judge FOLDER
    python benchmarks/predicted.py report --forced OUT.json --runs RUNS/austen \
        --profile austen.json [--save]

`force` runs every plan over text of a split that the profile has not seen (`plan_nats`: each step
asks the network as the sampler does) and over one position at a time; the difference is what the
plan's steps lose, without the curve. All plans meet the same sequences and orders. `report` holds
both it and the judge's nats of samples against the prediction; intervals are 95 %, over sequences.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from quality import measure
from quality_sets import Set, sets
from torch import Tensor
from training_step import commit, hardware, table

import dlm
from dlm.data import Batch, collate, prepare
from dlm.denoiser import Context, Denoiser
from dlm.evaluation.likelihood import autocast, to_device
from dlm.evaluation.plan_costs import MEASURED, NAMES, PLANS
from dlm.files import replace_text
from dlm.random import Key
from dlm.samplers import Even, FromProfile, Plan
from dlm.samplers.forced import plan_nats
from dlm.spec import build

RESULTS = Path(__file__).parent / "results"
BUDGETS = (2, 4, 8, 16, 32)
ONE = "one at a time"
_TIMES = 4000  # resampled sets of sequences


class Value(NamedTuple):
    """A mean and its central 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if abs(self.value) >= 100 else 1 if abs(self.value) >= 10 else 2
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def force(args: argparse.Namespace) -> None:
    """Measure, and keep the nats of every sequence."""
    loaded = dlm.load(args.checkpoint)
    device, meta = torch.device(args.device), loaded.meta
    denoiser = loaded.denoiser.to(device).eval()
    source, packing = (build(meta[part], path=part) for part in ("data", "packing"))
    blocks = prepare(source, args.split, loaded.tokenizer, packing, meta["length"])
    full = [i for i in range(len(blocks)) if collate([blocks[i]], [i]).valid.all()]
    chosen = [full[i * len(full) // args.sequences] for i in range(min(args.sequences, len(full)))]
    whole = collate([blocks[i] for i in chosen], range(len(chosen)))
    parts = [_part(whole, at, args.batch, device) for at in range(0, len(chosen), args.batch)]
    plans: dict[str, Plan] = {name: PLANS[key] for key, name in NAMES.items()}
    plans[MEASURED] = FromProfile(str(args.profile))
    wanted: list[tuple[str, Plan, int]] = [(ONE, Even(), meta["length"])]
    wanted += [(name, plans[name], k) for k in args.budgets for name in args.plans or plans]
    about = {"split": args.split, "commit": commit(), "hardware": hardware(args.device)}
    about |= {"length": meta["length"], "sequences": len(chosen)}
    found: list[dict[str, Any]] = []
    for name, plan, steps in wanted:
        with autocast(meta["precision"], device):
            nats = torch.cat([_forced(denoiser, part, plan, steps) for part in parts])
        found.append({"plan": name, "steps": steps, "nats": nats.tolist()})
        print(f"{name} {steps}: {nats.mean().item():.2f} nats a sequence", flush=True)
        replace_text(args.out, json.dumps({**about, "found": found}))


def _part(batch: Batch, start: int, size: int, device: torch.device) -> Batch:
    parts = {n: x[start : start + size] for n, x in batch._asdict().items() if x is not None}
    return to_device(batch._replace(**parts), device)


def _forced(denoiser: Denoiser, batch: Batch, plan: Plan, steps: int) -> Tensor:
    key = Key(1, batch.rows).fold("forced")
    context = Context(documents=batch.documents)
    return plan_nats(denoiser, batch.tokens, plan, steps, key=key, context=context).cpu()


def report(args: argparse.Namespace) -> None:
    """Tables of both, and a plot."""
    profile = json.loads(args.profile.read_text("utf-8"))
    forced = json.loads(args.forced.read_text("utf-8"))
    lost = _lost(forced)
    judged = _judged(args.runs)
    lines = [
        "# Plans: predicted against measured",
        "",
        f"- profile: {profile['split']} split, {profile['measured_sequences']} sequences",
        f"- forced: {forced['split']} split, {forced['sequences']} sequences of "
        f"{forced['length']} tokens; commit {forced['commit']}; {forced['hardware']}",
        "",
        *_forced_table(profile, lost),
        *_differences(profile, lost),
        *_judged_table(profile, judged),
        *_variety_table(args.runs),
    ]
    text = "\n".join(lines)
    print(text)
    if args.save is not None:
        stem = args.save / f"{datetime.date.today()}-predicted"
        args.save.mkdir(parents=True, exist_ok=True)
        _plot(profile, lost, judged, stem.with_suffix(".png"))
        stem.with_suffix(".md").write_text(f"{text}\n![predicted]({stem.name}.png)\n", "utf-8")


Nats = dict[tuple[str, int], np.ndarray]  # of every sample, by the judge
Lost = dict[tuple[str, int], np.ndarray]  # nats of every sequence beyond one position at a time


def _lost(forced: dict[str, Any]) -> Lost:
    nats = {(one["plan"], one["steps"]): np.asarray(one["nats"]) for one in forced["found"]}
    (base,) = (values for (plan, _), values in nats.items() if plan == ONE)
    return {key: values - base for key, values in nats.items() if key[0] != ONE}


def _forced_table(profile: dict[str, Any], lost: Lost) -> list[str]:
    rows = []
    for (plan, steps), values in sorted(lost.items(), key=lambda item: (item[0][1], item[0][0])):
        predicted = Value(*profile["predictions"][plan][str(steps)])
        rows.append([str(steps), plan, str(predicted), str(_mean(values))])
    head = ("calls", "plan", "predicted", "measured, other text")
    return ["Nats a sequence that the steps lose:", "", table(head, rows), ""]


def _differences(profile: dict[str, Any], lost: Lost) -> list[str]:
    """Plans against the profile's, on the same sequences and orders."""
    rows = []
    for plan, steps in sorted(lost, key=lambda key: (key[1], key[0])):
        if plan != MEASURED:
            known = profile["predictions"]
            predicted = known[plan][str(steps)][0] - known[MEASURED][str(steps)][0]
            found = _mean(lost[plan, steps] - lost[MEASURED, steps])
            rows.append([str(steps), plan, f"{predicted:.1f}", str(found)])
    head = ("calls", "plan", "predicted", "measured, other text")
    title = "Nats a sequence that a plan loses more than `plan=profile`, same sequences and orders:"
    return [title, "", table(head, rows), ""]


def _judged_table(profile: dict[str, Any], judged: Nats) -> list[str]:
    rows, losses, means = [], [], []
    for (plan, steps), nats in sorted(judged.items(), key=lambda item: (item[0][1], item[0][0])):
        predicted = profile["predictions"][plan][str(steps)][0]
        best = judged.get((MEASURED, steps))
        gap = "" if best is None or plan == MEASURED else str(_difference(nats, best))
        losses.append(predicted)
        means.append(nats.mean().item())
        rows.append([str(steps), plan, f"{predicted:.1f}", str(_mean(nats)), gap])
    head = ("calls", "plan", "predicted loss", "judge, nats a sample", "more than plan=profile")
    if len(rows) < 3:
        return []
    rank = _rank_correlation(losses, means)
    closing = f"Rank correlation of predicted and judged nats over {len(rows)} sets: {rank:.3f}"
    return ["Samples, judged:", "", table(head, rows), "", closing, ""]


def _variety_table(folder: Path) -> list[str]:
    """The other numbers of the judged samples, as `quality.py` has them."""
    names = ("entropy", "distinct_2", "repeated_4", "divergence_2")
    rows = []
    for one in sorted(sets(folder), key=lambda one: (one.steps, one.setting)):
        plan = _plan_of(one)
        if plan is not None and one.scores() is not None:
            numbers = measure(one)["numbers"]
            cells = [_number(numbers.get(name)) for name in names]
            rows.append([str(one.steps), plan, *cells])
    head = ("calls", "plan", "entropy, nats", "distinct-2", "repeated 4-grams", "divergence-2")
    return (
        ["Samples, the other numbers (docs/quality.md):", "", table(head, rows), ""] if rows else []
    )


def _number(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return ""
    return "{value:.3f} ({low:.3f} to {high:.3f})".format(**estimate)


def _judged(folder: Path) -> Nats:
    found: Nats = {}
    for one in sets(folder):
        plan, scores = _plan_of(one), one.scores()
        if plan is not None and scores is not None:
            found[plan, one.steps] = scores.nats.numpy()
    return found


def _plan_of(one: Set) -> str | None:
    """The plan of a set as the profile calls it; None: other settings."""
    parts = one.setting.split()
    if parts[:1] != ["sampler=reveal"]:
        return None
    options = [part for part in parts[1:] if not part.startswith("plan.path=")]
    if options == ["plan=profile"]:
        return MEASURED
    if options == ["plan=minimax"]:
        options.append("plan.against=both")
    return NAMES.get(" ".join(options))


def _mean(values: np.ndarray) -> Value:
    chosen = np.random.default_rng(0).integers(len(values), size=(_TIMES, len(values)))
    low, high = np.quantile(values[chosen].mean(-1), (0.025, 0.975))
    return Value(float(values.mean()), float(low), float(high))


def _difference(one: np.ndarray, two: np.ndarray) -> Value:
    """Of the means of two independent sets."""
    generator = np.random.default_rng(0)
    means = [
        values[generator.integers(len(values), size=(_TIMES, len(values)))].mean(-1)
        for values in (one, two)
    ]
    low, high = np.quantile(means[0] - means[1], (0.025, 0.975))
    return Value(float(one.mean() - two.mean()), float(low), float(high))


def _rank_correlation(one: list[float], two: list[float]) -> float:
    first, second = (np.argsort(np.argsort(values)) for values in (one, two))
    return float(np.corrcoef(first, second)[0, 1])


def _plot(profile: dict[str, Any], lost: Lost, judged: Nats, path: Path) -> None:
    """Measured against predicted: on other text, and by the judge."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    known = profile["predictions"]
    names = list(dict.fromkeys(name for name, _ in [*lost, *judged]))
    for axes, found in ((left, lost), (right, judged)):
        for number, plan in enumerate(names):
            mine = [key for key in found if key[0] == plan]
            values = [_mean(found[key]) for key in mine]
            axes.errorbar(
                [known[plan][str(steps)][0] for _, steps in mine],
                [v.value for v in values],
                [[v.value - v.low for v in values], [v.high - v.value for v in values]],
                fmt="o", ms=4, color=f"C{number}", label=plan,
            )  # fmt: skip
    ends = left.get_xlim()
    left.plot(ends, ends, color="grey", lw=0.8)
    left.set(xscale="log", yscale="log", xlabel="predicted, nats lost a sequence")
    left.set(ylabel="measured on other text, nats")
    right.set(xscale="log", xlabel="predicted, nats lost a sequence")
    right.set(ylabel="judge, nats a sample")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(required=True)
    one = stages.add_parser("force", help=force.__doc__)
    one.set_defaults(run=force)
    one.add_argument("out", type=Path)
    one.add_argument("--checkpoint", required=True)
    one.add_argument("--split", default="test")
    one.add_argument("--sequences", type=int, default=128)
    one.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    one.add_argument("--plans", nargs="+", choices=[*NAMES.values(), MEASURED])
    one.add_argument("--batch", type=int, default=32)
    one.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    two = stages.add_parser("report", help=report.__doc__)
    two.set_defaults(run=report)
    two.add_argument("--forced", type=Path, required=True)
    two.add_argument("--runs", type=Path, required=True, help="of one model, or an empty folder")
    two.add_argument("--save", type=Path, nargs="?", const=RESULTS, help="into a folder")
    for sub in (one, two):
        sub.add_argument("--profile", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    arguments.run(arguments)
