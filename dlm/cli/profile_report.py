"""What `dlm profile` writes into its file and on the screen: records, tables, sentences."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from torch import Tensor

from dlm.cli.common import number, table
from dlm.evaluation.dependence import Dependence
from dlm.evaluation.gradients import GradientNoise
from dlm.evaluation.plan_costs import MEASURED, NAMES, Calls, Interval, PlanCosts
from dlm.evaluation.profile import Profile
from dlm.evaluation.sensitivity import Sensitivity
from dlm.evaluation.step_costs import StepCosts
from dlm.evaluation.terms import TERMS, BoundTerms
from dlm.samplers.grids import CosineGrid, EvenGrid, GeometricGrid, best_grid
from dlm.schedules import Schedule

SHOWN = 7  # budgets on the screen; the file has all
GRIDS = {"even": EvenGrid(), "cosine": CosineGrid(), "geometric": GeometricGrid()}
Grids = Mapping[str, Mapping[str, Sequence[float]]]


def plan_record(
    dependence: Dependence, costs: PlanCosts, budgets: Sequence[int], calls: Mapping[str, Calls]
) -> dict[str, Any]:
    """Losses by known positions, what every plan loses, and the calls that the target takes."""
    return {
        "loss": {
            "known": list(dependence.known),
            "nats": dependence.loss.tolist(),
            "stderr": dependence.stderr.tolist(),
        },
        "measured_sequences": len(dependence.losses),
        "nelbo": dependence.nelbo,
        "nelbo_stderr": dependence.nelbo_stderr,
        "total_correlation": list(costs.total_correlation()),
        "dual_total_correlation": list(costs.dual_total_correlation()),
        "predictions": {
            name: {str(steps): list(costs.cost(name, steps)) for steps in budgets}
            for name in costs.names
        },
        "crossed": {str(steps): costs.crossed(steps) for steps in budgets},
        "calls": {name: list(found) for name, found in calls.items()},
    }


def mask_grid_record(
    levels: Tensor, loss: Tensor, costs: PlanCosts, budgets: Sequence[int], schedule: Schedule
) -> dict[str, Any]:
    """The loss by level of a masked model, and what the ancestral sampler loses on grids."""
    named = _named_grids(levels, loss, budgets, schedule)
    grids = {
        name: {str(steps): list(costs.grid_cost(grid)) for steps, grid in by_steps.items()}
        for name, by_steps in named.items()
    }
    return {"grid": {"alpha": levels.tolist(), "loss": loss.tolist()}, "grids": grids}


def grid_record(
    costs: StepCosts, budgets: Sequence[int], schedule: Schedule, times: int, seed: int
) -> dict[str, Any]:
    """The loss whose Riemann error is the cost of steps, and what grids lose."""
    levels, loss = costs.loss()
    named = _named_grids(levels, loss, budgets, schedule)
    grids = {
        name: {
            str(steps): [costs.excess(grid), *costs.excess_interval(grid, times, seed)]
            for steps, grid in by_steps.items()
        }
        for name, by_steps in named.items()
    }
    stale = {"alpha": costs.levels.tolist(), "nats": costs.mean.tolist()}
    return {
        "grid": {"alpha": levels.tolist(), "loss": loss.tolist()},
        "grids": grids,
        "stale": stale,
        "measured_sequences": len(costs.stale),
    }


def _named_grids(
    levels: Tensor, loss: Tensor, budgets: Sequence[int], schedule: Schedule
) -> dict[str, dict[int, Tensor]]:
    named = {
        name: {k: grid.levels(k, schedule) for k in budgets if name != "geometric" or k > 1}
        for name, grid in GRIDS.items()
    }
    return {**named, MEASURED: {k: best_grid(levels, loss, k) for k in budgets}}


def sensitivity_record(found: Mapping[str, Sensitivity]) -> dict[str, Any]:
    """By where the states come from and noise level."""
    return {
        name: {
            "noise": one.noise.tolist(),
            "total_variation": one.total_variation.tolist(),
            "total_variation_stderr": one.total_variation_stderr.tolist(),
            "kl": one.kl.tolist(),
            "kl_stderr": one.kl_stderr.tolist(),
        }
        for name, one in found.items()
    }


def diagnostics_record(loss: Profile, noise: GradientNoise, terms: BoundTerms) -> dict[str, Any]:
    """Loss by noise level and by term, and the gradient by noise level."""
    return {
        "terms": {
            "names": list(TERMS),
            "nats": terms.nats.tolist(),
            "stderr": terms.stderr.tolist(),
            "share": terms.share.tolist(),
            "positions": terms.positions.tolist(),
            "prior": terms.prior,
        },
        "loss": {
            "edges": loss.edges.tolist(),
            "nats": loss.mean.tolist(),
            "stderr": loss.stderr.tolist(),
            "share": _share(loss).tolist(),
        },
        "gradient": {
            "of": noise.of,
            "edges": noise.edges.tolist(),
            "signal": noise.signal.tolist(),
            "variance": noise.variance.tolist(),
            "count": noise.sums[0].tolist(),
        },
    }


def _share(loss: Profile) -> Tensor:
    part = loss.mean * loss.edges.diff()
    return part / part.sum()


def summary(dependence: Dependence, costs: PlanCosts, split: str) -> Table:
    """What the curve says of the text."""
    length, loss = dependence.length, dependence.all_losses
    return table(
        f"dependence of {length} tokens, {split} split",
        {
            "loss, nothing known": f"{number(loss[0])} nats/token",
            "loss, all others known": f"{number(loss[-1])} nats/token",
            "one at a time (nelbo)": f"{number(dependence.nelbo)} +- "
            f"{number(dependence.nelbo_stderr)} nats/token",
            "total correlation": f"{_nats(costs.total_correlation())} nats a sequence",
            "dual total correlation": f"{_nats(costs.dual_total_correlation())} nats a sequence",
            "measured on": f"{len(dependence.losses)} sequences, intervals are 95 % over them",
        },
    )


def plan_table(
    costs: PlanCosts, budgets: Sequence[int], calls: Mapping[str, Calls], target: float
) -> Table:
    """What every plan loses, best last."""
    shown = [k for k in budgets if k < costs.curve.length][-SHOWN:] or list(budgets)[-SHOWN:]
    grid = Table(title="nats a sequence that finite steps lose, by calls", title_justify="left")
    grid.add_column("plan")
    for steps in shown:
        grid.add_column(str(steps), justify="right")
    grid.add_column(f"calls for {target:g}", justify="right")
    for name in costs.names:
        values = [_short(costs.cost(name, steps).value) for steps in shown]
        grid.add_row(name, *values, _calls(calls[name]))
    grid.add_row("  crossed", *(_short(costs.crossed(steps)) for steps in shown), "")
    return grid


def sentence(costs: PlanCosts, budget: int, calls: Mapping[str, Calls], target: float) -> str:
    """What it comes to."""
    other = costs.best(budget)
    names = list(dict.fromkeys(("even", other)))
    lost = " and ".join(f"{name} {_nats(costs.cost(name, budget))}" for name in names)
    needed = ", ".join(f"{_calls(calls[name])} calls with {name}" for name in names)
    return (
        f"At {budget} calls, finite steps lose, in nats a sequence: {lost}; the plan of this "
        f"profile {_nats(costs.cost(MEASURED, budget))}, and {_short(costs.crossed(budget))} on "
        f"sequences that it was not made from. To lose no more than {target:g} nats takes "
        f"{needed}, {_calls(calls[MEASURED])} with the profile's. The error of the network comes "
        "on top and is the same for every plan."
    )


def recommended(costs: PlanCosts, budget: int) -> str:
    """The plan to use: the profile's where it is better on sequences that it was not made from."""
    other = costs.best(budget)
    return MEASURED if costs.crossed(budget) < costs.cost(other, budget).value else other


def reason(costs: PlanCosts, budget: int, plan: str) -> str:
    """Why that one."""
    crossed, other = _short(costs.crossed(budget)), costs.best(budget)
    if plan == MEASURED:
        return (
            f"Use the plan of this profile: made from half of the sequences, it loses {crossed} "
            f"nats on the other half, and {other} loses {_short(costs.cost(other, budget).value)}."
        )
    return (
        f"Use {other}: on sequences that it was not made from, the plan of a profile loses "
        f"{crossed} nats, no less, and {other} needs no file."
    )


def plan_keys(plan: str, path: str) -> str:
    """How `dlm generate` is told of a plan."""
    if plan == MEASURED:
        return f"plan=profile plan.path={shlex.quote(path)}"
    return next(key for key, name in NAMES.items() if name == plan)


def grid_table(grids: Grids, budgets: Sequence[int]) -> Table:
    """What grids lose."""
    shown = [str(k) for k in budgets][-SHOWN:]
    grid = Table(
        title="nats a sequence that the steps of the ancestral sampler lose, by steps",
        title_justify="left",
    )
    grid.add_column("grid")
    for steps in shown:
        grid.add_column(steps, justify="right")
    for name, found in grids.items():
        values = (_short(found[steps][0]) if steps in found else "-" for steps in shown)
        grid.add_row(name, *values)
    return grid


def grid_sentence(grids: Grids, budget: int) -> str:
    """What it comes to."""
    even, best = (Interval(*grids[name][str(budget)]) for name in ("even", MEASURED))
    return (
        f"At {budget} steps, grid=even loses {_nats(even)} nats a sequence to finite steps and "
        f"grid=profile {_nats(best)}. The error of the network comes on top."
    )


def sensitivity_table(found: Mapping[str, Sensitivity]) -> Table:
    """Total variation and KL by noise level and where the states come from, +- standard error."""
    grid = Table(
        title="change of a leave-one-out posterior when its own token is drawn anew",
        title_justify="left",
    )
    grid.add_column("1 - alpha", justify="right")
    columns = []
    for name, one in found.items():
        for what, mean, error in (
            ("TV", one.total_variation, one.total_variation_stderr),
            ("KL", one.kl, one.kl_stderr),
        ):
            grid.add_column(f"{name}: {what}", justify="right")
            columns.append([f"{m:.3f} +- {e:.3f}" for m, e in zip(mean, error, strict=True)])
    noise = next(iter(found.values())).noise.tolist()
    for level, *row in zip(noise, *columns, strict=True):
        grid.add_row(f"{level:g}", *row)
    return grid


def terms_table(terms: BoundTerms) -> Table:
    """The bound by what a noisy position shows."""
    grid = Table(title="the bound by what a noisy position shows", title_justify="left")
    for name in ("shows", "nats/token", "stderr", "share of the bound", "share of positions"):
        grid.add_column(name, justify="right")
    rows = zip(TERMS, terms.nats, terms.stderr, terms.share, terms.positions, strict=True)
    for name, nats, error, share, positions in rows:
        if positions > 0:
            grid.add_row(
                name, f"{nats:.3f}", f"{error:.3f}", f"{100 * share:.1f} %",
                f"{100 * positions:.1f} %",
            )  # fmt: skip
    grid.add_row("prior", f"{terms.prior:.3f}", "0", "", "")
    return grid


def diagnostics_tables(loss: Profile, noise: GradientNoise) -> tuple[Table, Table]:
    """Loss by noise level, and the gradient of its integrand."""
    first = Table(title="the bound by noise level 1 - alpha", title_justify="left")
    for name in ("from", "to", "nats/token", "stderr", "share of the bound"):
        first.add_column(name, justify="right")
    edges = loss.edges.tolist()
    columns = (loss.mean.tolist(), loss.stderr.tolist(), _share(loss).tolist())
    for low, high, mean, error, share in zip(edges[:-1], edges[1:], *columns, strict=True):
        first.add_row(
            f"{low:.2g}", f"{high:.2g}", f"{mean:.3f}", f"{error:.3f}", f"{100 * share:.1f} %"
        )
    second = Table(
        title=f"the gradient of one sequence by noise level, {noise.of}", title_justify="left"
    )
    for name in ("from", "to", "norm of mean", "sd", "share of variance", "draws"):
        second.add_column(name, justify="right")
    edges, part = noise.edges.tolist(), noise.variance / noise.variance.sum()
    columns = (noise.signal, noise.variance.sqrt(), part, noise.sums[0])
    rows = zip(edges[:-1], edges[1:], *(c.tolist() for c in columns), strict=True)
    for low, high, signal, sd, share, count in rows:
        values = (f"{signal:.3f}", f"{sd:.3f}", f"{100 * share:.1f} %", f"{count:.0f}")
        second.add_row(f"{low:.3g}", f"{high:.3g}", *values)
    return first, second


def _short(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _calls(found: Calls) -> str:
    return f"{found.value} ({found.low} to {found.high})"


def _nats(interval: Interval) -> str:
    value, low, high = (_short(x) for x in interval)
    return f"{value} (95 %: {low} to {high})"
