"""The information curve of a law: what decides how much a reveal plan loses.

    Z_j = average over |S| = j - 1 and i not in S of I(X_i; X_S),      0 = Z_1 <= Z_2 <= ... <= Z_L

in nats. Positions revealed in a uniformly random order, several at a time from exact posteriors,
err because those of one step are drawn independently. For sizes s_1..s_K the expected divergence of
what comes out, given the order, is the left Riemann error of the curve,

    E KL = sum_k sum_{j <= s_k} (Z_{N_{k-1} + j} - Z_{N_{k-1} + 1}) = sum_l (Z_l - Z_{l-1}) R_l,

R_l the number of positions from l to the end of its step, 0 where l begins one; for random sizes
R_l becomes E R_l. The curve also gives the total correlation, sum_j Z_j, and its dual, L Z_L - sum
Z. So one curve, known or measured on a trained model (`dlm profile`), tells what every plan costs.

Source: Chen, Cong & Li 2026, "Optimal inference schedules for masked diffusion models" (COLT).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, final

import numpy as np

from dlm.errors import UserError
from dlm.files import replace_text

KIND = "information_curve"


@final
@dataclass(frozen=True)
class InformationCurve:
    """Z_1 to Z_L.

    Args:
        values: nats, the first one 0.
        stderr: of each, where they were estimated.

    Raises:
        UserError: for no values, values that are not finite, or a first one that is not 0.
    """

    values: tuple[float, ...]
    stderr: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.values or not np.isfinite(self.values).all() or self.values[0] != 0:
            raise UserError("an information curve is a list of finite numbers that begins with 0")
        if self.stderr is not None and len(self.stderr) != len(self.values):
            raise UserError("an information curve needs as many standard errors as values")

    @property
    def length(self) -> int:
        """L."""
        return len(self.values)

    @property
    def total_correlation(self) -> float:
        """sum_j Z_j, nats: sum of the entropies of all positions minus that of the sequence."""
        return float(np.sum(self.values))

    @property
    def dual_total_correlation(self) -> float:
        """L Z_L - sum_j Z_j, nats: entropy of the sequence minus that of each given the others."""
        return self.length * self.values[-1] - self.total_correlation

    def expected_kl(self, sizes: Sequence[int]) -> float:
        """Nats lost by a plan with these sizes, which sum to L.

        Raises:
            UserError: if they do not.
        """
        return self.cost(waits_of(np.asarray(sizes), self.length))

    def cost(self, waits: np.ndarray) -> float:
        """sum_l (Z_l - Z_{l-1}) E R_l for E R_1..E R_L, nats."""
        return float(np.diff(self.values) @ waits[1:])

    def tail(self, known: int) -> InformationCurve:
        """The curve of the positions that are left when `known` random ones are given.

        Its increments are those from known + 1 on: sum over them costs the rest of a plan.
        """
        rest = self.values[known:]
        if not rest:
            raise UserError(f"{known} known positions leave nothing of a curve of {self.length}")
        return InformationCurve(tuple(v - rest[0] for v in rest))

    def stretched(self, length: int) -> InformationCurve:
        """The curve read at another length, linear in the share of positions that is known."""
        if length == self.length:
            return self
        at = np.linspace(0, 1, length)
        values = np.interp(at, np.linspace(0, 1, self.length), self.values)
        return InformationCurve((0.0, *values[1:].tolist()))

    def increasing(self) -> InformationCurve:
        """The nearest curve that never falls, weighted by the precision of its values.

        Estimates wiggle and the curve cannot: plans are made from the projection (pool adjacent
        violators).
        """
        errors = np.ones(self.length) if self.stderr is None else np.asarray(self.stderr)
        floor = max(float(errors.max()) * 1e-3, 1e-12)
        weights = 1 / np.maximum(errors, floor) ** 2
        blocks: list[list[float]] = []  # value, weight, count
        for value, weight in zip(self.values, weights, strict=True):
            blocks.append([value, float(weight), 1])
            while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                right, left = blocks.pop(), blocks.pop()
                total = left[1] + right[1]
                mean = (left[0] * left[1] + right[0] * right[1]) / total
                blocks.append([mean, total, left[2] + right[2]])
        flat = [value for value, _, count in blocks for _ in range(int(count))]
        return InformationCurve((0.0, *(max(0.0, v) for v in flat[1:])), self.stderr)

    def optimal_sizes(self, steps: int) -> tuple[int, ...]:
        """The sizes of at most `steps` steps of least expected KL, by dynamic programming.

        O(steps L log L): the cost of a step obeys the quadrangle inequality, so its best beginning
        moves one way.
        """
        return _optimal_sizes(self.increasing().values, min(steps, self.length))

    def save(self, path: str | Path, **more: Any) -> None:
        """Write the curve as JSON, with further plain values beside it."""
        stderr = None if self.stderr is None else list(self.stderr)
        content = {"kind": KIND, "length": self.length, "values": list(self.values)}
        text = json.dumps({**content, "stderr": stderr, **more}, indent=2, allow_nan=False)
        replace_text(Path(path), text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: there is no such file, or it holds no curve.
        """
        try:
            content = json.loads(Path(path).expanduser().read_text("utf-8"))
            if content["kind"] != KIND:
                raise ValueError
            stderr = content["stderr"]
            values = tuple(float(v) for v in content["values"])
            return cls(values, None if stderr is None else tuple(float(v) for v in stderr))
        except OSError as error:
            raise UserError(f"cannot read the profile {str(path)!r}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{str(path)!r} holds no information curve; write one with `dlm profile`"
            ) from error


def waits_of(sizes: np.ndarray, length: int) -> np.ndarray:
    """R_1..R_L of deterministic sizes (..., K) that sum to L, float64 (..., L).

    Raises:
        UserError: if they do not sum to L.
    """
    ends = np.cumsum(sizes, -1)
    if (ends[..., -1] != length).any() or (sizes < 0).any():
        raise UserError(f"the sizes of a plan must sum to {length}, got {sizes.tolist()}")
    places = np.arange(length)
    block = (places[:, None] >= ends[..., None, :]).sum(-1)  # which step a place is in
    end = np.take_along_axis(ends, block, -1)
    begin = end - np.take_along_axis(sizes, block, -1)
    return np.where(places == begin, 0, end - places).astype(np.float64)


@lru_cache(maxsize=256)
def _optimal_sizes(values: tuple[float, ...], steps: int) -> tuple[int, ...]:
    length = len(values)
    z = np.asarray(values)
    sums = np.concatenate([[0.0], np.cumsum(z)])

    def cost(begin: np.ndarray | int, end: int) -> np.ndarray:
        """Of one step from the places `begin` (from 0) to before `end`."""
        return sums[end] - sums[begin] - (end - begin) * z[begin]

    best = np.full(length + 1, np.inf)
    best[0] = 0.0
    choices = []
    for _ in range(steps):
        new, choice = np.full(length + 1, np.inf), np.zeros(length + 1, dtype=np.int64)
        pending = [(1, length, 0, length - 1)]
        while pending:
            low, high, first, last = pending.pop()
            if low > high:
                continue
            middle = (low + high) // 2
            begins = np.arange(first, min(last, middle - 1) + 1)
            totals = best[begins] + cost(begins, middle)
            at = int(totals.argmin())
            new[middle], choice[middle] = totals[at], begins[at]
            pending += [(low, middle - 1, first, int(begins[at]))]
            pending += [(middle + 1, high, int(begins[at]), last)]
        choices.append(choice)
        best = new
    sizes, end = [], length
    for choice in reversed(choices):
        begin = int(choice[end])
        sizes.append(end - begin)
        end = begin
    return tuple(reversed(sizes))
