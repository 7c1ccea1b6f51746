"""The pictures of `dlm profile`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlm.evaluation.dependence import Dependence
from dlm.evaluation.gradients import GradientNoise
from dlm.evaluation.plan_costs import MEASURED, PlanCosts
from dlm.evaluation.profile import Profile
from dlm.evaluation.sensitivity import Sensitivity

FLOOR = 1e-3  # nats: below, a loss is not drawn


def _panels(count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # a second of import, only here

    figure = Figure(figsize=(6.4 * count, 4.8), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _finish(figure: Any, image: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(image, dpi=120)


def draw_plans(
    image: Path, dependence: Dependence, costs: PlanCosts, budgets: Sequence[int]
) -> None:
    """Loss of every plan by calls, and the measured curve."""
    figure, (left, right) = _panels(2)
    for name in costs.names:
        values = [(k, *costs.cost(name, k)) for k in budgets]
        steps, value, low, high = np.array([v for v in values if v[1] > FLOOR] or [[np.nan] * 4]).T
        thick = {"color": "black", "linewidth": 2.5} if name == MEASURED else {"linewidth": 1.2}
        (line,) = left.loglog(steps, value, label=name, marker=".", **thick)
        low, high = np.maximum(low, FLOOR), np.maximum(high, FLOOR)
        left.fill_between(steps, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    left.set_xlabel("network calls")
    left.set_ylabel("nats a sequence lost to finite steps")
    known = np.asarray(dependence.known)
    right.errorbar(
        known, dependence.loss, 1.96 * dependence.stderr, fmt=".", label="measured, 95 %"
    )
    right.plot(dependence.all_losses, label="as used: never rising", linewidth=1)
    right.set_xlabel("known positions")
    right.set_ylabel("loss of a hidden position (nats)")
    _finish(figure, image)


def draw_grids(
    image: Path, grids: Mapping[str, Mapping[str, Sequence[float]]], grid: Mapping[str, Any]
) -> None:
    """Loss of every grid by steps, and where the loss falls."""
    figure, (left, right) = _panels(2)
    for name, found in grids.items():
        values = [(int(k), *v) for k, v in found.items() if v[0] > FLOOR]
        steps, value, low, high = np.array(values or [[np.nan] * 4]).T
        thick = {"color": "black", "linewidth": 2.5} if name == MEASURED else {"linewidth": 1.2}
        (line,) = left.loglog(steps, value, label=name, marker=".", **thick)
        low, high = np.maximum(low, FLOOR), np.maximum(high, FLOOR)
        left.fill_between(steps, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    left.set_xlabel("steps of the ancestral sampler")
    left.set_ylabel("nats a sequence lost to finite steps")
    right.plot(grid["alpha"], grid["loss"])
    right.set_xlabel("alpha")
    right.set_ylabel("loss whose Riemann error is that of a grid (nats)")
    _finish(figure, image)


def draw_sensitivity(image: Path, found: Mapping[str, Sensitivity]) -> None:
    """Total variation and KL by noise level, and by where the states come from."""
    figure, (left, right) = _panels(2)
    for name, one in found.items():
        noise = one.noise.numpy()
        tv, kl = one.total_variation.numpy(), one.kl.numpy()
        errors = one.total_variation_stderr.numpy(), one.kl_stderr.numpy()
        left.errorbar(noise, tv, 1.96 * errors[0], marker=".", label=name)
        right.errorbar(noise, kl, 1.96 * errors[1], marker=".", label=name)
    for axes, what in ((left, "total variation"), (right, "KL (nats)")):
        axes.set_xlabel("noise level 1 - alpha")
        axes.set_ylabel(f"{what} when the token itself is drawn anew")
        axes.set_ylim(bottom=0)
    _finish(figure, image)


def draw_diagnostics(image: Path, loss: Profile, noise: GradientNoise) -> None:
    """The integrand of the bound, and mean and spread of its gradient, by noise level."""
    figure, (left, right) = _panels(2)
    middle = ((loss.edges[1:] + loss.edges[:-1]) / 2).numpy()
    left.errorbar(middle, loss.mean.numpy(), 1.96 * loss.stderr.numpy(), marker=".")
    left.set_xlabel("noise level 1 - alpha")
    left.set_ylabel("integrand of the bound (nats/token)")
    middle = ((noise.edges[1:] + noise.edges[:-1]) / 2).numpy()
    right.semilogy(middle, noise.variance.sqrt().numpy(), marker=".", label="sd of one sequence")
    seen = noise.signal.numpy() > 0
    right.semilogy(middle[seen], noise.signal.numpy()[seen], marker=".", label="norm of the mean")
    right.set_xlabel("noise level 1 - alpha")
    right.set_ylabel(f"gradient of the integrand, {noise.of}")
    _finish(figure, image)
