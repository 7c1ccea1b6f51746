"""Where the time and the memory of a training step go: dlm against the dense yardstick.

Both run the same network (8 x 256, 4 heads), batch (16 x 128 tokens) and noise, and their losses
must agree; they differ in head, bound and optimizer: chunked and fused here, the full B x L x K
and the default AdamW in the yardstick (`dense.py`). Variants are interleaved in one process, the
first round is a warm-up, times are medians: of `time.process_time` with one thread on a CPU, of
wall time with the device synchronised on a GPU. Ratios are medians of ratios within a round.

In dlm the head, the loss and their gradients are one pass: the column "loss" holds all three, and
"backward" is that of the network alone. Peak memory of a part is what it adds at its highest to
what was there before the step (weights, gradients and optimizer state are there already).

    python benchmarks/training_step.py [--reps 5] [--states 256 8192 50258] [--save]
"""

import argparse
import ctypes
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, final

import dense
import numpy as np
import torch
from torch import Tensor

from dlm.denoiser import Denoiser
from dlm.networks import DiT
from dlm.objectives import Elbo
from dlm.parameterizations import LeaveOneOut
from dlm.processes import Absorbing, Process, State, Uniform
from dlm.random import Key
from dlm.schedules import Linear
from dlm.times import LowDiscrepancy
from dlm.training.optim import AdamW

BATCH, LENGTH = 16, 128
PARTS = ("data", "network", "head", "loss", "backward", "optimizer")
TOLERANCE = 1e-4  # relative, between the float32 and the float64 sum of a batch
PROCESSES: dict[str, Callable[[int], Process]] = {
    "absorbing": lambda states: Absorbing(states, states - 1, Linear()),
    "uniform": lambda states: Uniform(states, Linear()),
}
RESULTS = Path(__file__).parent / "results"


class Noisy(NamedTuple):
    """A training batch: clean tokens, noisy tokens, times."""

    x0: Tensor
    state: State
    t: Tensor


@final
class Meter:
    """Seconds and peak megabytes of the parts of one step; `enter` ends the part before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.peaks: dict[str, float] = defaultdict(float)
        self._part: str | None = None
        _release_memory()
        self._base = self._memory("VmRSS")

    def enter(self, part: str | None) -> None:
        now = self._now()
        if self._part is not None:
            self.seconds[self._part] += now - self._since
            peak = self._memory("VmHWM") - self._base
            self.peaks[self._part] = max(self.peaks[self._part], peak)
        self._part = part
        self._reset_peak()
        self._since = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def _memory(self, field: str) -> float:
        """Megabytes now (VmRSS) or at the highest since the last reset (VmHWM)."""
        if self.device.type == "cuda":
            now, peak = torch.cuda.memory_allocated, torch.cuda.max_memory_allocated
            return (now if field == "VmRSS" else peak)(self.device) / 1e6
        status = Path("/proc/self/status")
        if not status.exists():  # only Linux tells
            return float("nan")
        line = next(row for row in status.read_text().splitlines() if row.startswith(field))
        return int(line.split()[1]) * 1024 / 1e6

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")


@final
class Variant:
    """One way to train on one process: its own weights and optimizer.

    Args:
        process: the noise process.
        fused: dlm's step; False: the yardstick.
        args: of the command line.
    """

    def __init__(self, process: Process, fused: bool, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.process, self.fused = process, fused
        self.device, self.bf16 = torch.device(args.device), args.precision == "bf16"
        timed = process.time_conditioned
        network = DiT(process.num_states, LENGTH, 256, 8, 4, time_conditioning=timed)
        self.network = network
        self.denoiser = Denoiser(network, process, LeaveOneOut()).to(self.device)
        if args.compile:
            network.compile_blocks()
        self.optimizer = (
            AdamW()(self.denoiser) if fused else torch.optim.AdamW(self.denoiser.parameters())
        )

    def step(self, data: np.ndarray, round_: int) -> tuple[float, Meter]:
        """One training step: its loss, and what each part took."""
        meter = Meter(self.device)
        meter.enter("data")
        noisy = self._noise(data, round_)
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)
        with autocast:
            loss = self._fused(noisy, meter) if self.fused else self._dense(noisy, meter)
        meter.enter("backward")
        (loss / (BATCH * LENGTH)).backward()
        meter.enter("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        meter.enter(None)
        return loss.item(), meter

    def _noise(self, data: np.ndarray, round_: int) -> Noisy:
        start = round_ * BATCH
        rows = torch.arange(start, start + BATCH, device=self.device)
        tokens = torch.from_numpy(data[start : start + BATCH].astype(np.int64)).to(self.device)
        t = LowDiscrepancy()(rows, seed=0, batch_size=BATCH).t
        return Noisy(tokens, self.process.corrupt(tokens, t[:, None], key=Key(0, rows)), t)

    def _fused(self, noisy: Noisy, meter: Meter) -> Tensor:
        hooks = [
            self.network.register_forward_pre_hook(lambda *_: meter.enter("network")),
            self.network.register_forward_hook(lambda *_: meter.enter("loss")),
        ]
        weight = torch.ones_like(noisy.x0, dtype=torch.bool)
        loss = Elbo()(self.denoiser, noisy.x0, noisy.state, noisy.t, weight).loss
        for hook in hooks:
            hook.remove()
        return loss

    def _dense(self, noisy: Noisy, meter: Meter) -> Tensor:
        meter.enter("network")
        hidden = self.denoiser.hidden(noisy.state, noisy.t)
        meter.enter("head")
        logits = self.denoiser.backbone.head(hidden)
        meter.enter("loss")
        arguments = logits, noisy.state.tokens, noisy.x0, 1 - noisy.t[:, None]
        if self.process.mask_id is None:
            return dense.uniform_bound(*arguments).sum()
        return dense.absorbing_bound(*arguments, self.process.mask_id).sum()


def _release_memory() -> None:
    """Hand freed memory back, so that the next part is seen to ask for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def compare(states: int, args: argparse.Namespace) -> list[list[str]]:
    """Rows of the two tables for one vocabulary: times and megabytes of each variant."""
    random = np.random.default_rng(0)
    data = random.integers(0, states - 1, ((args.reps + 1) * BATCH, LENGTH)).astype(np.uint16)
    variants = {
        (name, fused): Variant(make(states), fused, args)
        for name, make in PROCESSES.items()
        for fused in (False, True)
    }
    meters: dict[tuple[str, bool], list[Meter]] = defaultdict(list)
    for round_ in range(args.reps + 1):
        losses = {}
        for key, variant in variants.items():
            losses[key], meter = variant.step(data, round_)
            if round_:
                meters[key].append(meter)
        for name in PROCESSES if round_ == 0 else ():
            check_equal(losses[name, True], losses[name, False], args)
    return [
        row(states, name, fused, meters[name, fused], meters[name, False])
        for name, fused in variants
    ]


def check_equal(ours: float, theirs: float, args: argparse.Namespace) -> None:
    """The same weights, data and noise must give the same loss; bf16 heads are not compared."""
    if args.precision == "32" and abs(ours - theirs) > TOLERANCE * abs(theirs):
        raise SystemExit(f"the losses differ: {ours} against {theirs} of the yardstick")


def row(states: int, name: str, fused: bool, meters: list[Meter], base: list[Meter]) -> list[str]:
    """One variant: speed, ratio to the yardstick, then seconds and megabytes of its parts."""
    totals = [sum(meter.seconds.values()) for meter in meters]
    base_totals = [sum(meter.seconds.values()) for meter in base]
    ratio = statistics.median(b / t for b, t in zip(base_totals, totals, strict=True))
    peak = statistics.median(max(meter.peaks.values()) for meter in meters)
    base_peak = statistics.median(max(meter.peaks.values()) for meter in base)

    def part(values: list[float], form: str) -> str:
        middle = statistics.median(values)
        return format(middle, form) if middle else "in loss"

    return [
        f"{states:,}",
        name,
        "dlm" if fused else "dense",
        f"{BATCH * LENGTH / statistics.median(totals):,.0f}",
        f"{ratio:.2f}x",
        *(part([meter.seconds[p] for meter in meters], ".3f") for p in PARTS),
        f"{peak:,.0f}",
        f"{peak / base_peak:.2f}x",
        *(part([meter.peaks[p] for meter in meters], ",.0f") for p in PARTS),
    ]


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def report(rows: list[list[str]], args: argparse.Namespace) -> str:
    """Both tables under the hardware, the commit and the command."""
    key, timed, sized = ("K", "process", "variant"), 5 + len(PARTS), 3
    times = [cells[:timed] for cells in rows]
    sizes = [cells[:sized] + cells[timed:] for cells in rows]
    malloc = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    return "\n\n".join(
        [
            "# Training step",
            f"- hardware: {hardware(args.device)}; torch {torch.__version__}, "
            f"{torch.get_num_threads()} thread(s), precision {args.precision}, "
            f"blocks {'compiled' if args.compile else 'eager'}, malloc {malloc or 'default'}\n"
            f"- commit: {commit()}\n- command: `python benchmarks/{Path(sys.argv[0]).name} "
            f"{' '.join(sys.argv[1:])}`\n- batch: {BATCH} x {LENGTH} tokens, network 8 x 256; "
            f"medians of {args.reps} interleaved rounds",
            "Seconds a part; dlm's loss includes the head and the gradients of both.",
            table((*key, "tokens/s", "speed-up", *PARTS), times),
            "Peak megabytes above the memory before the step.",
            table((*key, "peak MB", "of dense", *PARTS), sizes),
        ]
    )


def hardware(device: str) -> str:
    """Name of what it ran on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line for line in lines if line.startswith("model name")), platform.processor())
    return f"{name.split(':')[-1].strip()}, {os.cpu_count()} CPUs"


def commit() -> str:
    """Short hash of the checkout, and whether tracked files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description="Parts of a training step.")
    parser.add_argument("--reps", type=int, default=5, help="rounds that count")
    parser.add_argument("--states", type=int, nargs="+", default=[256, 8192, 50258], help="K")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="of both")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of both")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-...")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = report([cells for states in args.states for cells in compare(states, args)], args)
    print(text)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.date.today()}-training_step.md"
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
