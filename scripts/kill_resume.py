"""Kill `dlm train` with SIGKILL at random moments, resume it, and compare with a run left alone.

    python scripts/kill_resume.py --kills 20 --steps 300 [--folder DIR] [key=value ...]

One run is left alone. Others are killed at random moments, of the start-up, of training, of saving
and of validating, and resumed until they end; a new one is started until there were enough kills.
Every one of them must end with the same files: both checkpoints (weights, average, optimizer,
counters) leaf by leaf, `metrics.csv` and `samples.jsonl` byte by byte. Exit code 1 where not.
Further arguments are overrides of `dlm train`.
"""

from __future__ import annotations

import argparse
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("kill_resume")

LETTERS = "etaoin shrdlu"
SETTINGS = (
    "data=text",
    "tokenizer=char",
    "backbone=nano",
    "backbone.dropout=0.1",
    "length=32",
    "batch_size=4",
    "trainer.accelerator=cpu",
    "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=40",
    "trainer.log_every_n_steps=3",
    "callbacks.checkpoint.every_n_train_steps=7",
    "sample.every_n_steps=50",
)
STARTING = 0.2  # share of the kills that fall anywhere, the import of torch included
TRAINING = 4.0  # seconds: the others fall within so many of the first new row of metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; 0 where all runs are equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("overrides", nargs="*")
    keys = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    folder = keys.folder or Path(tempfile.mkdtemp(prefix="kill_resume_"))
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(keys.seed)
    text = folder / "text.txt"
    words = ("".join(chance.choices(LETTERS, k=80)) for _ in range(200))
    text.write_text("\n\n".join(words) + "\n", "utf-8")
    settings = [*SETTINGS, f"data.path={text}", f"trainer.max_steps={keys.steps}", *keys.overrides]

    whole = folder / "whole"
    begin = time.perf_counter()
    if _train(whole, settings).wait():
        raise SystemExit(f"the run that is left alone failed; see {whole}.log")
    seconds = time.perf_counter() - begin
    log.info("left alone: %.0f s", seconds)
    kills, runs, wrong = 0, 0, []
    while kills < keys.kills:
        run = folder / f"killed-{runs}"
        runs += 1
        kills += _killed_run(run, settings, keys.kills - kills, chance, seconds)
        wrong += differences(whole, run)
    for difference in wrong:
        log.error("differs: %s", difference)
    log.info("%d kills in %d runs: %s", kills, runs, "DIFFERENT" if wrong else "all equal")
    return 1 if wrong else 0


def _train(folder: Path, settings: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start or go on with the run in a folder."""
    command = [sys.executable, "-m", "dlm.cli.main", "train", f"run_dir={folder}", "resume=true"]
    with Path(f"{folder}.log").open("ab") as output:
        return subprocess.Popen([*command, *settings], stdout=output, stderr=output)


def _killed_run(
    folder: Path, settings: Sequence[str], kills: int, chance: random.Random, seconds: float
) -> int:
    """Train to the end in spite of at most so many kills; how many there were."""
    done = 0
    while True:
        process = _train(folder, settings)
        if done < kills:
            if chance.random() < STARTING:
                delay = chance.uniform(0, seconds)
            else:
                _wait_for_row(process, folder / "metrics.csv")
                delay = chance.uniform(0, TRAINING)
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
                log.info("%s: kill %d after %s rows", folder.name, done, _rows(folder))
                continue
        if process.wait():
            raise SystemExit(f"a resumed run failed; see {folder}.log")
        return done


def _wait_for_row(process: subprocess.Popen[bytes], metrics: Path) -> None:
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while process.poll() is None:
        if metrics.exists() and metrics.stat().st_mtime_ns != before:
            return
        time.sleep(0.01)


def _rows(folder: Path) -> int:
    path = folder / "metrics.csv"
    return len(path.read_text("utf-8").splitlines()) - 1 if path.exists() else 0


def differences(one: Path, two: Path) -> list[str]:
    """What is not the same in the files of two runs."""
    found = []
    for name in ("metrics.csv", "samples.jsonl"):
        if (one / name).read_bytes() != (two / name).read_bytes():
            found.append(f"{two / name}")
    for name in ("last.ckpt", "best.ckpt"):
        left, right = (
            dict(_leaves(torch.load(run / "checkpoints" / name, weights_only=True)))
            for run in (one, two)
        )
        for key in sorted({*left, *right}):
            if not _equal(left.get(key), right.get(key)):
                found.append(f"{two / 'checkpoints' / name}: {key}")
    return found


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        yield path, value
        return
    for key, item in items:
        yield from _leaves(item, f"{path}/{key}")


if __name__ == "__main__":
    raise SystemExit(main())
