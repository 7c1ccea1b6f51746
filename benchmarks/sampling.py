"""Where a sampling step's time goes: network, head, draw; the usual dense way against ours.

One step of 64 on 16 sequences of 256 tokens with 50,258 states, an 8 x 256 network, one thread.

    dense    head at every position, softmax, float64 Gumbel noise over all states, argmax: as
             published samplers do it
    reveal   absorbing, random order: 4 positions a sequence are known before the network runs
    uniform  thinning: only positions that may move, their number at the middle of the way

The draw alone is measured besides: float64 Gumbel, float32 exponential race, torch.multinomial and
ours, on the same rows, with the share of rows where ours gives the index of a float64 CDF.

    python benchmarks/sampling.py [--reps 3] [--states 50258] [--save]
"""

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from training_step import RESULTS, commit, hardware, table

from dlm.denoiser import Denoiser
from dlm.networks import DiT
from dlm.parameterizations import LeaveOneOut
from dlm.processes import Absorbing, Process, Uniform
from dlm.random import Key, sample_categorical
from dlm.samplers import Ancestral
from dlm.samplers.correctors import most
from dlm.schedules import Linear

BATCH, LENGTH, STEPS = 16, 256, 64
DRAW_ROWS = 128


def gumbel(log_probs: Tensor) -> Tensor:
    """Float64 Gumbel noise over every state."""
    u = torch.rand(log_probs.shape, dtype=torch.float64)
    return (log_probs.double() - torch.log(-torch.log(u + 1e-300))).argmax(-1)


def race(log_probs: Tensor) -> Tensor:
    """Float32 exponential race."""
    return (log_probs.exp() / torch.empty_like(log_probs).exponential_()).argmax(-1)


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


class Step:
    """A model at a step in the middle of the way, and which positions it touches."""

    def __init__(self, process: Process) -> None:
        torch.manual_seed(0)
        states = process.num_states
        conditioned = process.time_conditioned
        net = DiT(states, LENGTH, 256, 8, 4, time_conditioning=conditioned)
        self.model = Denoiser(net, process, LeaveOneOut()).eval()
        key = Key(0, torch.arange(BATCH))
        x0 = (key.uniform(LENGTH) * (states - 1)).long()
        self.t = torch.tensor(0.5, dtype=torch.float64)
        self.s = self.t - 1 / STEPS
        self.state = process.corrupt(x0, self.t, key=key)
        self.everywhere = torch.ones(BATCH, LENGTH, dtype=torch.bool)
        u = key.fold("move").uniform(LENGTH)
        if process.reveals:
            self.chosen = most(u, process.hidden(self.state), LENGTH // STEPS)
        else:
            self.chosen = u < Ancestral().bound(process, self.state, self.t, self.s)
        self.u = key.fold("value").uniform(LENGTH)
        self.hidden = torch.empty(0)

    def network(self) -> None:
        self.hidden = self.model.hidden(self.state, self.t[None])

    def head(self, where: Tensor):
        rows = self.state.at(where)
        return self.model.predict(self.hidden[where], rows, self.t.expand(rows.tokens.shape))

    def measure(self, dense: bool) -> dict[str, float]:
        process, found = self.model.process, {"network": seconds(self.network)}
        made = []
        where = self.everywhere if dense else self.chosen
        found["head"] = seconds(lambda: made.append(self.head(where)))
        law = made[0].process.posterior if dense else process.moved
        made.append(None)
        found["law"] = seconds(lambda: made.append(law(made[0], self.s)))
        draw = gumbel if dense else lambda x: sample_categorical(x, self.u[where])
        found["draw"] = seconds(lambda: draw(made[-1]))
        return found


def steps(states: int, reps: int) -> list[list[str]]:
    rows = []
    for process in (Absorbing(states, states - 1, Linear()), Uniform(states, Linear())):
        step = Step(process)
        name = type(process).__name__.lower()
        with torch.no_grad():
            step.measure(dense=False)  # warm-up
            rounds = [(step.measure(False), step.measure(True)) for _ in range(reps)]
        totals = [sum(dense.values()) / sum(ours.values()) for ours, dense in rounds]
        for way, at in (("dense", 1), ("ours", 0)):
            parts = {k: statistics.median(r[at][k] for r in rounds) for k in rounds[0][0]}
            rest = sum(parts.values()) - parts["network"]
            count = BATCH * LENGTH if at else int(step.chosen.sum())
            ratio = "" if at else f"{statistics.median(totals):.1f}x"
            values = [f"{1e3 * v:,.1f}" for v in parts.values()]
            share = f"{rest / sum(parts.values()):.0%}"
            rows.append([name, way, f"{count:,}", *values, share, ratio])
    return rows


def draws(states: int, reps: int) -> list[list[str]]:
    generator = torch.Generator().manual_seed(0)
    log_probs = (torch.randn(DRAW_ROWS, states, generator=generator) * 3).log_softmax(-1)
    u = Key(1, torch.arange(DRAW_ROWS)).uniform()
    ways = {
        "float64 Gumbel": lambda: gumbel(log_probs),
        "float32 exponential race": lambda: race(log_probs),
        "torch.multinomial": lambda: torch.multinomial(log_probs.exp(), 1),
        "ours": lambda: sample_categorical(log_probs, u),
    }
    for way in ways.values():
        way()
    rounds = [{name: seconds(way) for name, way in ways.items()} for _ in range(reps)]
    cdf = log_probs.double().exp().cumsum(-1)
    exact = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
    same = (exact == sample_categorical(log_probs, u)).double().mean().item()
    rows = []
    for name in ways:
        ns = statistics.median(r[name] for r in rounds) / log_probs.numel() * 1e9
        ratio = statistics.median(r[name] / r["ours"] for r in rounds)
        equal = f"{same:.1%}" if name == "ours" else ""
        rows.append([name, f"{ns:.2f}", f"{ratio:.1f}x", equal])
    return rows


def report(args: argparse.Namespace) -> str:
    head = ("process", "way", "rows", "network ms", "head ms", "law ms", "draw ms")
    return "\n\n".join(
        [
            f"# A sampling step, {args.states:,} states",
            f"- hardware: {hardware('cpu')}, {torch.get_num_threads()} thread(s), fp32\n"
            f"- commit: {commit()}\n- command: `python benchmarks/{Path(sys.argv[0]).name} "
            f"{' '.join(sys.argv[1:])}`\n- {BATCH} x {LENGTH} tokens, network 8 x 256, one step of "
            f"{STEPS}; medians of {args.reps} interleaved rounds, process time",
            table((*head, "outside the network", "dense / ours"), steps(args.states, args.reps)),
            f"The draw alone, {DRAW_ROWS} rows.",
            table(
                ("draw", "ns a logit", "of ours", "index of a float64 CDF"),
                draws(args.states, 3 * args.reps),
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Parts of a sampling step.")
    parser.add_argument("--reps", type=int, default=3, help="rounds that count")
    parser.add_argument("--states", type=int, default=50258, help="K")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-...")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = report(args)
    print(text)
    if args.save:
        path = RESULTS / f"{datetime.date.today()}-sampling.md"
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
