"""Quality against network calls: every main sampler, judged, with intervals, every sample counted.

Three stages over one folder; each keeps what is there already, so a run that was cut goes on:

    python benchmarks/quality.py generate RUNS austen=austen uniform=PATH ... [--num 64]
    python benchmarks/quality.py judge RUNS --judge FOLDER      (scripts/smollm2.py writes one)
    python benchmarks/quality.py report RUNS [--save]

A model is NAME=CHECKPOINT; its process decides which lines of `quality_settings.py` it gets. All
settings of a model share seed and rows. And for files of `dlm generate`, whatever was asked:

    python benchmarks/quality.py records A.jsonl B.jsonl --judge FOLDER
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import quality_report
import torch
from quality_sets import (
    REFERENCE,
    Set,
    is_there,
    path_of,
    save,
    save_scores,
    save_text,
    scores_meta,
    sets,
)
from quality_settings import BUDGETS, SETTINGS
from training_step import commit, hardware

import dlm
from dlm.cli.compose import compose
from dlm.data.tokenizers import Tokenizer
from dlm.denoiser import Denoiser
from dlm.errors import UserError
from dlm.evaluation.judge import Judge
from dlm.evaluation.likelihood import autocast
from dlm.evaluation.quality import quality
from dlm.files import replace_text
from dlm.random import Key
from dlm.samplers import Sampler
from dlm.spec import build

RESULTS = Path(__file__).parent / "results"
DTYPES = {"bf16": torch.bfloat16, "32": torch.float32}


def generate(args: argparse.Namespace) -> None:
    """Draw what is missing."""
    for model in args.models:
        name, _, checkpoint = model.partition("=")
        loaded = dlm.load(checkpoint)
        denoiser, length = loaded.denoiser.to(args.device), loaded.meta["length"]
        process, folder = type(denoiser.process).__name__, args.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "tokenizer.json", loaded.tokenizer.to_json())
        save_text(folder, loaded, args.num, args.reference)
        settings = SETTINGS[process][:: -1 if args.reverse else 1]
        for setting in args.settings or settings:
            for steps in args.budgets:
                if is_there(folder, setting, steps, args.num):
                    continue
                overrides = [*setting.split(), f"checkpoint={checkpoint}", f"sampler.steps={steps}"]
                start = time.perf_counter()
                try:
                    spec = compose("generate", overrides).plain("sampler")
                    sampler = build(spec, trust=("dlm",), path="sampler")
                    tokens, calls = _draw(sampler, denoiser, length, args)
                except UserError as error:
                    print(f"{name} {setting} {steps}: refused: {error}", flush=True)
                    continue
                seconds = time.perf_counter() - start
                meta = {"setting": setting, "steps": steps, "process": process, "sampler": spec}
                meta |= {"checkpoint": checkpoint, "seconds": seconds, **_machine(args)}
                save(path_of(folder, setting, steps), tokens, calls, meta)
                print(f"{name} {setting} {steps}: {seconds:.1f} s", flush=True)


def _draw(
    sampler: Sampler, denoiser: Denoiser, length: int, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    drawn = []
    for rows in torch.arange(args.num, device=args.device).split(args.batch):
        with autocast(args.precision, torch.device(args.device)):
            samples = sampler(denoiser, (len(rows), length), key=Key(0, rows))
        drawn.append((samples.tokens.cpu().numpy(), samples.calls.cpu().numpy()))
    tokens, calls = zip(*drawn, strict=True)
    return np.concatenate(tokens), np.concatenate(calls)


def judge(args: argparse.Namespace) -> None:
    """Score what is missing, and measure everything: RUNS/quality.json."""
    name = f"{Path(args.judge).name}, {args.dtype}"
    waiting = [s for s in sets(args.folder) if s.scores(name) is None and s.setting != REFERENCE]
    scorer = Judge(args.judge, args.device, DTYPES[args.dtype]) if waiting else None
    for samples in waiting:
        assert scorer is not None
        source = samples.path.parent / "tokenizer.json"
        if not source.exists():
            sys.exit(f"there is no {source}: run generate again, it draws nothing twice")
        tokenizer = Tokenizer.from_json(source.read_text("utf-8"))
        texts = [tokenizer.decode(row) for row in samples.array("tokens").tolist()]
        start = time.perf_counter()
        meta = {"judge": name, "first": scorer.first, **_machine(args)}
        save_scores(samples, scorer.score(texts, args.batch), meta)
        seconds = time.perf_counter() - start
        print(f"{samples.model} {samples.setting} {samples.steps}: {seconds:.1f} s", flush=True)
    found = [measure(samples) for samples in sets(args.folder) if samples.setting != REFERENCE]
    replace_text(args.folder / "quality.json", json.dumps(found, indent=1, allow_nan=False))
    print(f"wrote {args.folder / 'quality.json'}: {len(found)} sets")


def measure(samples: Set) -> dict[str, Any]:
    """All numbers of a set, and how it was made, for JSON."""
    tokens = samples.array("tokens").tolist()
    calls = samples.array("calls").tolist() if samples.steps else None
    found = [s for s in sets(samples.path.parent) if s.setting == REFERENCE]
    reference = found[0].array("tokens").tolist() if found else []
    same_size = reference if len(reference) == len(tokens) else None  # else it would mislead
    numbers = quality(tokens, samples.scores(), same_size, calls)
    plain = {name: estimate.plain() for name, estimate in numbers.items()}
    about = {**samples.meta, "model": samples.model, "num": len(tokens)}
    return {**about, "scored": scores_meta(samples), "numbers": plain}


def report(args: argparse.Namespace) -> None:
    """Tables and plots of RUNS/quality.json."""
    source = args.folder / "quality.json"
    if not source.exists():
        sys.exit(f"there is no {source}: run judge first")
    quality_report.write(json.loads(source.read_text("utf-8")), args.save)


def records(args: argparse.Namespace) -> None:
    """One row a file of `dlm generate`."""
    scorer, rows = Judge(args.judge, args.device, DTYPES[args.dtype]), {}
    for path in args.files:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        texts, tokens, calls = ([line[k] for line in lines] for k in ("text", "tokens", "calls"))
        numbers = quality(tokens, scorer.score(texts, args.batch), calls=calls)
        rows[path.name] = {name: estimate.plain() for name, estimate in numbers.items()}
    print(quality_report.all_numbers(rows))


def _machine(args: argparse.Namespace) -> dict[str, str]:
    command = f"python benchmarks/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}"
    return {"hardware": hardware(args.device), "commit": commit(), "command": command}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(required=True)
    for stage in (generate, judge, report, records):
        sub = stages.add_parser(stage.__name__, help=stage.__doc__)
        sub.set_defaults(run=stage)
        if stage is records:
            sub.add_argument("files", type=Path, nargs="+")
        else:
            sub.add_argument("folder", type=Path)
        if stage is generate:
            sub.add_argument("models", nargs="+", help="NAME=CHECKPOINT")
            sub.add_argument("--num", type=int, default=64, help="samples of a set")
            sub.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
            sub.add_argument("--settings", nargs="+", help="instead of those of the process")
            sub.add_argument("--reference", default="test", help="a split of --num blocks or more")
            sub.add_argument("--precision", default="32", help="or bf16-mixed")
            sub.add_argument("--reverse", action="store_true", help="of two runs, one from the end")
        if stage in (judge, records):
            sub.add_argument("--judge", required=True, help="a folder of transformers")
            sub.add_argument("--dtype", choices=DTYPES, default="bf16")
        if stage is report:
            sub.add_argument("--save", type=Path, nargs="?", const=RESULTS, help="into a folder")
        else:
            sub.add_argument("--batch", type=int, default=256 if stage is generate else 16)
            sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    arguments.run(arguments)
