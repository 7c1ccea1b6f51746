"""Time and memory of the head and the loss alone, forward and backward: dlm against dense.

One set of inputs: rows of hidden states, a head, clean and noisy tokens at stratified times. In
"dense" all logits exist and the published formula (`dense.py`) is differentiated, in float64 or as
published; "dlm" is the objective's driver. Masked noise leaves about half of the rows to the head;
"all masked" sends every row there. "cross-entropy" is that of the clean token on every row, by the
same driver: what no bound over the whole vocabulary can undercut by much.

Variants are interleaved in one process with one thread, the first round is a warm-up, times are
medians of `time.process_time`: with malloc as it is, and with thresholds so high that freed memory
is never handed back and no page is touched for the first time. Peak memory, above what is there
before the step, is that of the second step of a process of its own, with malloc as it is.

    python benchmarks/head_and_loss.py [--reps 5] [--states 50258] [--save]
"""

import argparse
import datetime
import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dense
import torch
from torch import Tensor, nn
from training_step import RESULTS, TOLERANCE, Meter, commit, hardware, table

from dlm.denoiser import Denoiser
from dlm.objectives import CrossEntropy, Elbo, Objective
from dlm.ops.fused_head import fused_head
from dlm.parameterizations import LeaveOneOut
from dlm.processes import Absorbing, Process, State, Uniform
from dlm.processes.prediction import pick
from dlm.random import Key
from dlm.schedules import Linear

BATCH = 8
RAISED = {"MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
Step = Callable[[], Tensor]  # builds the summed loss


class FixedBackbone(nn.Module):
    """Hidden states that are parameters, and a head."""

    def __init__(self, process: Process, args: argparse.Namespace) -> None:
        super().__init__()
        self.time_conditioning = process.time_conditioned
        self.noise_conditioning = process.noise_conditioned
        self.length = args.rows // BATCH
        self.hidden = nn.Parameter(torch.randn(BATCH, self.length, args.width))
        self.head = nn.Linear(args.width, process.num_states, bias=False)
        nn.init.normal_(self.head.weight, std=0.1)

    def forward(self, tokens: Tensor, **_: Tensor) -> Tensor:
        return self.hidden * 1.0

    def flops_per_token(self, length: int, training: bool = True) -> float:
        return 0.0


class Setting:
    """The inputs of one process and the ways to sum its loss."""

    def __init__(self, process: Process, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.process, self.args = process, args
        self.denoiser = Denoiser(FixedBackbone(process, args), process, LeaveOneOut())
        length = args.rows // BATCH
        self.x0 = torch.randint(0, args.states - 1, (BATCH, length))
        self.t = (torch.arange(BATCH).double() + 0.5) / BATCH
        key = Key(0, torch.arange(BATCH))
        self.state = process.corrupt(self.x0, self.t[:, None], key=key)

    def dlm(self, objective: Objective, state: State | None = None) -> Tensor:
        """Summed by the driver."""
        state = state or self.state
        return objective(self.denoiser, self.x0, state, self.t, torch.ones_like(self.x0)).loss

    def all_masked(self) -> Tensor:
        assert self.process.mask_id is not None
        return self.dlm(Elbo(), State(torch.full_like(self.x0, self.process.mask_id)))

    def cross_entropy(self) -> Tensor:
        hidden, head = self._parts()
        rows, weights = self.x0.flatten(), torch.ones(self.x0.numel())
        return fused_head(hidden.flatten(0, 1), head.weight, _cross_entropy, weights, rows)[0]

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The published formula on all logits."""
        hidden, head = self._parts()
        logits = head(hidden).to(dtype)
        arguments = logits, self.state.tokens, self.x0, 1 - self.t[:, None]
        if self.process.mask_id is None:
            return dense.uniform_bound(*arguments).sum()
        return dense.absorbing_bound(*arguments, self.process.mask_id).sum()

    def _parts(self) -> tuple[Tensor, nn.Linear]:
        backbone = self.denoiser.backbone
        return self.denoiser.hidden(self.state, self.t), backbone.head


def _cross_entropy(logits: Tensor, x0: Tensor) -> Tensor:
    return -pick(logits.float().log_softmax(-1), x0)


def variants(args: argparse.Namespace, only: str | None = None) -> dict[str, tuple[Setting, Step]]:
    """Name -> its inputs and its step; `only` one of them."""
    uniform = Setting(Uniform(args.states, Linear()), args)
    masked = Setting(Absorbing(args.states, args.states - 1, Linear()), args)
    made: dict[str, tuple[Setting, Step]] = {
        "uniform, dense float64": (uniform, lambda: uniform.dense(torch.float64)),
        "uniform, dlm": (uniform, lambda: uniform.dlm(Elbo())),
        "uniform cross-entropy, dlm": (uniform, lambda: uniform.dlm(CrossEntropy())),
        "cross-entropy, dlm": (uniform, uniform.cross_entropy),
        "masked, dense float64": (masked, lambda: masked.dense(torch.float64)),
        "masked, dense float32": (masked, lambda: masked.dense(torch.float32)),
        "masked, dlm": (masked, lambda: masked.dlm(Elbo())),
        "all masked, dlm": (masked, masked.all_masked),
    }
    return made if only is None else {only: made[only]}


def run(setting: Setting, step: Step, args: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds, peak megabytes and the loss of one forward and backward pass."""
    setting.denoiser.zero_grad(set_to_none=True)
    meter = Meter(torch.device("cpu"))
    meter.enter("step")
    with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
        loss = step()
    (loss / args.rows).backward()
    meter.enter(None)
    return meter.seconds["step"], meter.peaks["step"], loss.item()


def child(args: argparse.Namespace) -> dict[str, list[float]]:
    """In a process of its own: seconds of each round, or [megabytes] of one variant."""
    if args.eager:
        vars(importlib.import_module("dlm.ops.fused_head"))["COMPILE_FROM"] = float("inf")
    made = variants(args, args.peak)
    if args.peak:
        return {name: [run(*each, args)[1] for _ in range(2)][1:] for name, each in made.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    losses = {}
    for round_ in range(args.reps + 1):
        for name, each in made.items():
            took, _, losses[name] = run(*each, args)
            if round_:
                seconds[name].append(took)
    for name in ("uniform", "masked"):
        ours, theirs = losses[f"{name}, dlm"], losses[f"{name}, dense float64"]
        if args.precision == "32" and abs(ours - theirs) > TOLERANCE * abs(theirs):
            raise SystemExit(f"the losses differ: {ours} against {theirs} of the yardstick")
    return seconds


def spawn(malloc: dict[str, str], *more: str) -> dict[str, list[float]]:
    """`child` with these settings of malloc."""
    command = [sys.executable, *sys.argv, "--child", *more]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment = clean | {"OMP_NUM_THREADS": "1"} | malloc
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(malloc: dict[str, str], peaks: dict[str, float]) -> list[list[str]]:
    """Per variant: seconds, ratio to the dense float64 one of its noise, megabytes, their ratio."""
    seconds = spawn(malloc)

    def ratio(name: str, base: str) -> str:
        pairs = zip(seconds[base], seconds[name], strict=True)
        return f"{statistics.median(b / n for b, n in pairs):.2f}"

    cells = []
    for name, peak in peaks.items():
        base = ("masked" if "masked" in name else "uniform") + ", dense float64"
        cells.append(
            [
                "raised" if malloc else "default",
                name,
                f"{statistics.median(seconds[name]):.2f}",
                ratio(name, base) + "x",
                f"{1 / float(ratio(name, 'cross-entropy, dlm')):.2f}x",
                "" if malloc else f"{peak:,.0f}",
                "" if malloc else f"1/{peaks[base] / peak:.1f}",
            ]
        )
    return cells


def report(args: argparse.Namespace) -> str:
    """The table under the hardware, the commit and the command."""
    names = list(variants(argparse.Namespace(**vars(args) | {"states": 8, "rows": 8})))
    head = ("malloc", "variant", "s", "faster than dense", "of cross-entropy", "MB", "of dense")
    peaks = {name: spawn({}, "--peak", name)[name][0] for name in names}
    cells = [row for malloc in ({}, RAISED) for row in rows_of(malloc, peaks)]
    shape = f"{args.rows:,} rows, K = {args.states:,}, width {args.width}"
    return "\n\n".join(
        [
            "# Head and loss, forward and backward",
            f"- hardware: {hardware('cpu')}; torch {torch.__version__}, 1 thread, precision "
            f"{args.precision}, dlm's row losses {'eager' if args.eager else 'compiled'}\n"
            f"- commit: {commit()}\n- command: `python benchmarks/{Path(sys.argv[0]).name} "
            f"{' '.join(sys.argv[1:])}`\n- {shape}; medians of {args.reps} interleaved rounds; "
            "ratios are medians of ratios within a round",
            "Times against dense float64 of the same noise and against dlm's cross-entropy of all "
            "rows; peak megabytes above the memory before the step.",
            table(head, cells),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Head and loss, forward and backward.")
    parser.add_argument("--reps", type=int, default=5, help="rounds that count")
    parser.add_argument("--states", type=int, default=50258, help="K")
    parser.add_argument("--rows", type=int, default=1024, help="tokens, a multiple of 8")
    parser.add_argument("--width", type=int, default=256, help="of the hidden states")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="autocast")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-...")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        print(json.dumps(child(args)))
        return
    text = report(args)
    print(text)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        suffix = "_bf16" if args.precision == "bf16" else ""
        (RESULTS / f"{datetime.date.today()}-head_and_loss{suffix}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
