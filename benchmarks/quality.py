"""Quality against network calls: every main sampler, judged, with intervals, every sample counted.

Three stages over one folder; each keeps what is there already, so a run that was cut goes on:

    python benchmarks/quality.py generate RUNS austen=austen uniform=PATH ... [--num 64]
    python benchmarks/quality.py judge RUNS --judge FOLDER      (scripts/smollm2.py writes one)
    python benchmarks/quality.py report RUNS [--save]

A model is NAME=CHECKPOINT; its process decides which of `SETTINGS` it gets. A setting is a list of
overrides of `dlm generate`. All settings of a model share seed and rows.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from training_step import commit, hardware

import dlm
from dlm.cli.compose import compose
from dlm.data import batches, prepare
from dlm.evaluation.judge import Judge, Scores
from dlm.evaluation.quality import Estimate, quality
from dlm.random import Key
from dlm.spec import build

BUDGETS = (8, 16, 32, 64, 128, 256)
REVEAL = [
    "sampler=ancestral",
    "sampler=ancestral grid=cosine",
    "sampler=tau_leaping",
    "sampler=reveal plan=even",
    "sampler=reveal plan=cosine",
    "sampler=reveal plan=balanced",
    "sampler=reveal plan=minimax",
    "sampler=reveal plan=minimax plan.against=tc",
    "sampler=reveal plan=minimax plan.against=dtc",
    "sampler=reveal plan=equaliser",
    "sampler=first_hitting",
    "sampler=reveal order=confidence",
    "sampler=reveal order=confidence order.temperature=0.5",
    "sampler=reveal order=margin",
    "sampler=reveal order=entropy_bound",
    "sampler=reveal plan=even sampler.temperature=0.8",
    "sampler=psi",
    "sampler=remdm_cap",
    "sampler=remdm_rescale",
    "sampler=remdm_confidence",
    "sampler=remdm_loop",
]
GIBBS = "sampler=ancestral corrector=gibbs corrector.positions=8 sampler.correct_from=0.5"
SETTINGS = {
    "Absorbing": [*REVEAL, GIBBS],
    "LiftedUniform": [*REVEAL, "sampler=refreshed", GIBBS],
    "Hybrid": [
        "sampler=ancestral",
        "sampler=ancestral grid=cosine",
        "sampler=euler",
        "sampler=reveal plan=even",
        "sampler=reveal plan=cosine",
        "sampler=reveal order=confidence",
        "sampler=psi",
        GIBBS,
    ],
    "Uniform": [
        "sampler=ancestral",
        "sampler=ancestral grid=cosine",
        "sampler=ancestral grid=geometric",
        "sampler=sampled_x0",
        "sampler=maximal_coupling",
        "sampler=euler",
        "sampler=tau_leaping",
        "sampler=psi",
        GIBBS,
        f"{GIBBS} corrector.selection=lowest_margin",
        GIBBS.replace("gibbs", "denoise_renoise"),
        "sampler=ancestral corrector=forward_backward sampler.correct_from=0.5",
        "sampler=ancestral sampler.temperature=0.8",
        "sampler=ancestral sampler.temperature=0.8 sampler.filter_on=denoiser",
    ],
}


class Group(NamedTuple):
    """Samples of one model, setting and budget, on disk."""

    model: str
    setting: str
    steps: int
    path: Path

    @property
    def scores(self) -> Path:
        return self.path.with_suffix(".scores.npz")


def groups(folder: Path) -> Iterator[Group]:
    for path in sorted(folder.glob("*/*.npz")):
        if not path.name.endswith(".scores.npz"):
            meta = json.loads(str(np.load(path)["meta"]))
            yield Group(path.parent.name, meta["setting"], meta["steps"], path)


def generate(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    for model in args.models:
        name, _, checkpoint = model.partition("=")
        loaded = dlm.load(checkpoint)
        denoiser = loaded.denoiser.to(device)
        process, length = type(denoiser.process).__name__, loaded.meta["length"]
        (args.folder / name).mkdir(parents=True, exist_ok=True)
        _held_out(args.folder / name / "held_out.npz", checkpoint, loaded, args.num)
        numbered = list(enumerate(SETTINGS[process]))
        for number, setting in reversed(numbered) if args.reverse else numbered:
            for steps in args.budgets:
                path = args.folder / name / f"{number:02d}-{steps:03d}.npz"
                if path.exists():
                    continue
                overrides = [*setting.split(), f"checkpoint={checkpoint}", f"sampler.steps={steps}"]
                sampler = build(compose("generate", overrides).plain("sampler"), trust=("dlm",))
                start = time.perf_counter()
                key = Key(0, torch.arange(args.num, device=device))
                samples = sampler(denoiser, (args.num, length), key=key)
                tokens = samples.tokens.cpu().numpy().astype(np.uint16)
                seconds = time.perf_counter() - start
                meta = {"setting": setting, "steps": steps, "process": process, "seconds": seconds}
                machine = [f"- hardware: {hardware(args.device)}", f"- commit: {commit()}"]
                meta |= {"checkpoint": checkpoint, "machine": machine}
                _save(path, tokens, samples.calls.cpu().numpy(), meta)
                print(f"{name} {setting} {steps}: {seconds:.1f} s", flush=True)


def _held_out(path: Path, checkpoint: str, loaded: Any, num: int) -> None:
    """Validation text in blocks of the same number of tokens: what a perfect model would write."""
    if path.exists():
        return
    meta = loaded.meta
    source = build(meta["data"], path="data")
    packing = build(meta["packing"], path="packing")
    blocks = prepare(source, "validation", loaded.tokenizer, packing, meta["length"])
    rows = [b.tokens for b in batches(blocks, 32) if bool(b.valid.all())]
    tokens = torch.cat(rows)
    stride = max(1, len(tokens) // num)
    chosen = tokens[::stride][:num].numpy().astype(np.uint16)
    settings = {"setting": "held-out text", "steps": 0, "checkpoint": checkpoint}
    _save(path, chosen, np.zeros(len(chosen)), settings)


def _save(path: Path, tokens: np.ndarray, calls: np.ndarray, meta: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, tokens=tokens, calls=calls, meta=json.dumps(meta))
    part.rename(path)


def judge(args: argparse.Namespace) -> None:
    dtype = torch.bfloat16
    scorer = Judge(args.judge, args.device, dtype)
    tokenizers: dict[str, Any] = {}
    for group in groups(args.folder):
        if group.scores.exists():
            continue
        file = np.load(group.path)
        checkpoint = json.loads(str(file["meta"]))["checkpoint"]
        if checkpoint not in tokenizers:
            tokenizers[checkpoint] = dlm.load(checkpoint).tokenizer
        texts = [tokenizers[checkpoint].decode(row) for row in file["tokens"].tolist()]
        start = time.perf_counter()
        scores = scorer.score(texts, args.batch)
        np.savez(group.scores, nats=scores.nats, tokens=scores.tokens, bytes=scores.bytes)
        print(f"{group.model} {group.setting} {group.steps}: {time.perf_counter() - start:.1f} s",
              flush=True)  # fmt: skip


def measured(folder: Path) -> dict[str, dict[tuple[str, int], dict[str, Estimate]]]:
    """By model, then by setting and budget."""
    result: dict[str, dict[tuple[str, int], dict[str, Estimate]]] = {}
    reference = {
        group.model: np.load(group.path)["tokens"].tolist()
        for group in groups(folder)
        if group.steps == 0
    }
    for group in groups(folder):
        if not group.scores.exists():
            continue
        file, scored = np.load(group.path), np.load(group.scores)
        scores = Scores(*(torch.from_numpy(scored[name]) for name in Scores._fields))
        held_out = None if group.steps == 0 else reference[group.model]
        numbers = quality(file["tokens"].tolist(), scores, held_out)
        calls = float(file["calls"].mean())
        numbers["calls"] = Estimate(calls, calls, calls)
        result.setdefault(group.model, {})[group.setting, group.steps] = numbers
    return result


def report(args: argparse.Namespace) -> None:
    results = measured(args.folder)
    machine = next(json.loads(str(np.load(g.path)["meta"])).get("machine") for g in
                   groups(args.folder) if g.steps)  # fmt: skip
    lines = ["# Quality against network calls", "", *(machine or []), ""]
    for model, table in results.items():
        lines += _table(model, table)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.save:
        date = time.strftime("%Y-%m-%d")
        target = Path(__file__).parent / "results"
        (target / f"{date}-quality.md").write_text(text, "utf-8")
        _plot(results, target / f"{date}-quality.png")


def _table(model: str, table: dict[tuple[str, int], dict[str, Estimate]]) -> list[str]:
    budgets = sorted({steps for _, steps in table if steps})
    lines = [f"## {model}", ""]
    if held := table.get(("held-out text", 0)):
        lines += [f"Held-out text: {_cell(held)}.", ""]
    lines += ["| setting | " + " | ".join(str(b) for b in budgets) + " |"]
    lines += ["|---" * (len(budgets) + 1) + "|"]
    for setting in dict.fromkeys(s for s, steps in table if steps):
        cells = [_cell(table[setting, b]) if (setting, b) in table else "" for b in budgets]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(numbers: dict[str, Estimate]) -> str:
    p = numbers["judge_perplexity"]
    parts = [f"{p.value:.0f} ({p.low:.0f}-{p.high:.0f})", f"H {numbers['entropy'].value:.2f}"]
    parts.append(f"d2 {numbers['distinct_2'].value:.2f}")
    if "divergence" in numbers:
        parts.append(f"JS {numbers['divergence'].value:.3f}")
    return "; ".join(parts)


def _plot(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(results), 9), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False, sharex=True)
    for column, (model, table) in enumerate(results.items()):
        for row, measure in enumerate(("judge_perplexity", "entropy")):
            ax = axes[row, column]
            for setting in dict.fromkeys(s for s, steps in table if steps):
                points = sorted((b, v[measure]) for (s, b), v in table.items() if s == setting)
                x, y = [b for b, _ in points], [e.value for _, e in points]
                error = [
                    [e.value - e.low for _, e in points],
                    [e.high - e.value for _, e in points],
                ]
                label = setting.replace("sampler=", "").replace("sampler.", "")
                ax.errorbar(x, y, error, label=label, linewidth=1, capsize=2)
            if held := table.get(("held-out text", 0)):
                ax.axhline(held[measure].value, color="black", linestyle=":", label="held-out text")
            ax.set_xscale("log", base=2)
            ax.set_title(model)
            ax.set_ylabel("judge perplexity" if row == 0 else "entropy of a sample (nats)")
            ax.grid(alpha=0.3)
        axes[0, column].set_yscale("log")
        axes[1, column].set_xlabel("network calls at most")
        axes[0, column].legend(fontsize=6)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    stages = parser.add_subparsers(required=True)
    for stage in (generate, judge, report):
        sub = stages.add_parser(stage.__name__)
        sub.add_argument("folder", type=Path)
        sub.set_defaults(run=stage)
        if stage is generate:
            sub.add_argument("models", nargs="+")
            sub.add_argument("--num", type=int, default=64)
            sub.add_argument("--reverse", action="store_true", help="of two runs, one from the end")
            sub.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
        if stage is judge:
            sub.add_argument("--judge", required=True)
            sub.add_argument("--batch", type=int, default=16)
        if stage is report:
            sub.add_argument("--save", action="store_true")
        sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
