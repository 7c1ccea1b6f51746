"""Loss and gradient of a chunk of logits on a GPU: Triton kernel, twin, compiled torch and dense.

Not run yet: no numbers of this script are recorded anywhere.

All variants start from the same logits and leave losses and the gradient over the logits. `kernel`
and `twin` are `dlm.ops.triton_kernels` and `dlm.ops.triton_twins`; `compiled` is the row loss of
the process and its gradient in one torch.compile, `dense` the usual way (`dense.py`) under
autograd. Variants are interleaved, the first two rounds are a warm-up; times are medians of CUDA
events, ratios medians of ratios within a round, memory the peak above what was there before.

    python benchmarks/triton_loss.py [--rows 4096] [--states 50258] [--reps 20] [--save]
"""

import argparse
import datetime
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import dense
import torch
from torch import Tensor
from training_step import PROCESSES, RESULTS, commit, hardware, table

from dlm.ops import triton_rows, triton_twins
from dlm.ops.triton_rows import CrossEntropyRows, UniformBoundRows
from dlm.parameterizations import LeaveOneOut
from dlm.processes import Process, State

WARM_UP = 2
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}  # relative, between sums of losses
Variant = Callable[[Tensor], Tensor]  # logits, replaced by their gradient -> losses


class Rows(NamedTuple):
    """What is known per row."""

    process: Process
    state: State
    x0: Tensor
    t: Tensor
    weight: Tensor


def rows_of(name: str, count: int, states: int) -> Rows:
    process = PROCESSES[name](states)
    random = torch.Generator("cuda").manual_seed(0)
    x0 = torch.randint(states - 1, (count,), generator=random, device="cuda")
    t = torch.rand(count, generator=random, device="cuda", dtype=torch.float64).clamp(0.01, 0.99)
    z = torch.randint(states - 1, (count,), generator=random, device="cuda")
    moved = torch.rand(count, generator=random, device="cuda") < t
    z = torch.full_like(x0, process.mask_id) if process.mask_id is not None else z.where(moved, x0)
    return Rows(process, State(z), x0, t, torch.ones_like(t))


def fused(rows: Rows, twin: bool) -> Variant:
    made = rows.process.nelbo_kernel("loo", rows.state, rows.t, rows.x0)
    every = slice(None, len(rows.x0))
    if not twin:
        assert made is not None
        return lambda logits: made(logits, every, rows.weight, logits)
    if isinstance(made, CrossEntropyRows):
        known, mask_id = (made.x0, made.rate, rows.weight), made.mask_id
        return lambda logits: triton_twins.cross_entropy(logits, *known, mask_id, logits)
    assert isinstance(made, UniformBoundRows)
    known = made.z, made.x0, made.log_e, made.rate, rows.weight
    return lambda logits: triton_twins.uniform_bound(logits, *known, logits)


def compiled(rows: Rows) -> Variant:
    def loss(logits: Tensor) -> Tensor:
        prediction = LeaveOneOut()(logits, rows.process, rows.state, rows.t)
        return rows.process.nelbo(prediction, rows.x0)

    return differentiated(torch.compile(loss), rows.weight)


def usual(rows: Rows) -> Variant:
    def loss(logits: Tensor) -> Tensor:
        arguments = logits[None], rows.state.tokens[None], rows.x0[None], 1 - rows.t[None]
        if rows.process.mask_id is None:
            return dense.uniform_bound(*arguments)[0]
        return dense.absorbing_bound(*arguments, rows.process.mask_id)[0]

    return differentiated(loss, rows.weight)


def differentiated(loss: Variant, weight: Tensor) -> Variant:
    def step(logits: Tensor) -> Tensor:
        leaf = logits.detach().requires_grad_()
        losses = loss(leaf)
        (grad,) = torch.autograd.grad(losses, leaf, weight.to(losses.dtype))
        logits.copy_(grad)
        return losses.detach()

    return step


def measure(variant: Variant, logits: Tensor) -> tuple[float, float, float]:
    """Sum of the losses, milliseconds and peak megabytes of one call on a copy of the logits."""
    work = logits.clone()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    losses = variant(work)
    end.record()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 1e6
    return losses.double().sum().item(), start.elapsed_time(end), peak


def compare(name: str, states: int, dtype: torch.dtype, args: argparse.Namespace) -> list[list]:
    """Rows of the table of one process, vocabulary and dtype."""
    rows = rows_of(name, args.rows, states)
    logits = torch.randn(args.rows, states, device="cuda").to(dtype)
    variants = {
        "kernel": fused(rows, twin=False),
        "twin": fused(rows, twin=True),
        "compiled": compiled(rows),
        "dense": usual(rows),
    }
    times, peaks = defaultdict(list), defaultdict(list)
    for round_ in range(WARM_UP + args.reps):
        sums = {}
        for label, variant in variants.items():
            sums[label], milliseconds, peak = measure(variant, logits)
            if round_ >= WARM_UP:
                times[label].append(milliseconds)
                peaks[label].append(peak)
        for label, total in sums.items():
            if abs(total - sums["dense"]) > TOLERANCE[dtype] * abs(sums["dense"]):
                raise SystemExit(f"{label} sums to {total}, dense to {sums['dense']}")

    def line(label: str) -> list[str]:
        ratios = [a / b for a, b in zip(times[label], times["kernel"], strict=True)]
        middle, peak = statistics.median(times[label]), statistics.median(peaks[label])
        shape = [f"{states:,}", str(dtype).removeprefix("torch."), name, label]
        return [*shape, f"{middle:.3f}", f"{statistics.median(ratios):.2f}x", f"{peak:,.1f}"]

    return [line(label) for label in variants]


def report(lines: list[list[str]], args: argparse.Namespace) -> str:
    head = ("K", "logits", "process", "variant", "ms", "of the kernel's time", "peak MB")
    return "\n\n".join(
        [
            "# Loss and gradient of a chunk of logits",
            f"- hardware: {hardware('cuda')}; torch {torch.__version__}\n- commit: {commit()}\n"
            f"- command: `python benchmarks/triton_loss.py {' '.join(sys.argv[1:])}`\n"
            f"- {args.rows} rows; medians of {args.reps} interleaved rounds",
            table(head, lines),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The Triton kernels against other ways.")
    parser.add_argument("--rows", type=int, default=4096, help="rows of logits")
    parser.add_argument("--states", type=int, nargs="+", default=[8192, 50258], help="K")
    parser.add_argument("--reps", type=int, default=20, help="rounds that count")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-...")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/triton_loss.py measures GPU kernels and found no CUDA device")
    if not triton_rows.pays(torch.device("cuda"), torch.float32):
        raise SystemExit("benchmarks/triton_loss.py needs triton; install dlm[triton]")
    lines = [
        line
        for states in args.states
        for dtype in TOLERANCE
        for name in PROCESSES
        for line in compare(name, states, dtype, args)
    ]
    text = report(lines, args)
    print(text)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.date.today()}-triton_loss.md"
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
