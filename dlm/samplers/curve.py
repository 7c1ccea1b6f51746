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
        UserError: for no values, values that are not finite, a first one that is not 0, or
            standard errors that do not go with them.
    """

    values: tuple[float, ...]
    stderr: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.values or not np.isfinite(self.values).all() or self.values[0] != 0:
            raise UserError("an information curve is a list of finite numbers that begins with 0")
        if self.stderr is not None and (
            len(self.stderr) != self.length
            or not np.isfinite(self.stderr).all()
            or min(self.stderr) < 0
        ):
            raise UserError(
                "an information curve needs as many standard errors as values, none below 0"
            )

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

        Z_{known + j} - Z_{known + 1}: the average over what is given, and over its values, of the
        curves of the conditional laws. Without standard errors.

        Raises:
            UserError: nothing is left, or `known` is negative.
        """
        if not 0 <= known < self.length:
            raise UserError(
                f"a curve of {self.length} positions has a tail for 0 to {self.length - 1} known "
                f"ones, got {known}"
            )
        rest = self.values[known:]
        return InformationCurve(tuple(v - rest[0] for v in rest))

    def stretched(self, length: int) -> InformationCurve:
        """The curve read at another length, linear in the share of positions that is known.

        Z_j is read at (j - 1) / (L - 1), so the ends stay. Without standard errors.
        """
        if length == self.length:
            return self
        at = np.linspace(0, 1, length)
        values = np.interp(at, np.linspace(0, 1, self.length), self.values)
        return InformationCurve((0.0, *values[1:].tolist()))

    def increasing(self) -> InformationCurve:
        """The nearest curve that never falls, weighted by the precision of its values.

        Estimates wiggle and the curve cannot: plans are made from the projection (pool adjacent
        violators). It begins with 0 and has the standard errors of this one.
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

    def optimal_sizes(self, steps: int, known: int = 0) -> tuple[int, ...]:
        """The sizes of at most `steps` steps of least expected KL, by dynamic programming.

        Of the projection `increasing`. O(steps L log L): the cost of a step obeys the quadrangle
        inequality, so its best end moves one way. One table serves every `known` and fewer steps.

        Args:
            steps: at least 1.
            known: random positions that are given; the sizes sum to the others.

        Raises:
            UserError: for a number out of its range.
        """
        if steps < 1 or not 0 <= known < self.length:
            raise UserError(
                f"a plan needs at least 1 step and 1 of {self.length} positions to open, got "
                f"steps={steps} and {known} known ones"
            )
        ends = _best_ends(self.increasing().values).rows(min(steps, self.length - known))
        sizes, begin = [], known
        for left in range(len(ends), 0, -1):
            end = int(ends[left - 1][begin])
            sizes.append(end - begin)
            begin = end
        return tuple(sizes)

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
            stderr = content["stderr"]
            if content["kind"] != KIND or content["length"] != len(content["values"]):
                raise ValueError
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
    if (sizes < 0).any() or (sizes.sum(-1) != length).any():
        raise UserError(f"the sizes of a plan must sum to {length}, got {sizes.tolist()}")
    ends, places = sizes.cumsum(-1), np.arange(length)
    edge = np.full((*sizes.shape[:-1], length + 1), length)
    np.put_along_axis(edge, ends, ends, -1)
    begins = (edge[..., :-1] == places) | (places == 0)
    end = np.minimum.accumulate(edge[..., :0:-1], -1)[..., ::-1]  # the first edge after a place
    return np.where(begins, 0, end - places).astype(np.float64)


@final
class _BestEnds:
    """Where the first of k steps ends, for the places from b on, k <= L - b; it grows as asked.

    Places count from 0.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self._z = np.asarray(values)
        self._sums = np.concatenate([[0.0], self._z.cumsum()])
        length = len(values)
        best = self._sums[-1] - self._sums[:-1] - (length - np.arange(length)) * self._z
        first = np.full(length, length, dtype=np.int32)
        self._done = (best, (first,))  # replaced whole: threads may lose work, and nothing else

    def rows(self, steps: int) -> tuple[np.ndarray, ...]:
        """Row k - 1 is for k of `steps` steps: the ends for b = 0 to L - k, int32."""
        best, rows = self._done
        more = []
        for _ in range(steps - len(rows)):
            best, ends = _one_more(best + self._sums[: len(best)], self._z, self._sums)
            more.append(ends.astype(np.int32))
        if more:
            self._done = (best, (*rows, *more))
        return (*rows, *more)[:steps]


@lru_cache(maxsize=16)
def _best_ends(values: tuple[float, ...]) -> _BestEnds:
    return _BestEnds(values)


def _one_more(after: np.ndarray, z: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least cost, and the best end, of a step before others, for all its beginnings but the last.

    A step from b to e costs sums[e] - sums[b] - (e - b) z[b]; `after` at e is sums[e] plus the
    least cost from e on. Beginnings are visited in the order of their powers of two, all of one
    power at once: the best ends of the neighbours bound that of each.
    """
    count = len(after) - 1
    best, ends = np.empty(count), np.empty(count + 1, dtype=np.int64)
    ends[count] = count  # a sentinel
    stride = 1 << (count - 1).bit_length()
    while stride:
        begin = np.arange(stride - 1, count, 2 * stride)
        first = np.maximum(begin + 1, np.where(begin >= stride, ends[begin - stride], 1))
        number = ends[np.minimum(begin + stride, count)] - first + 1
        starts = number.cumsum() - number
        end = np.arange(number.sum()) + np.repeat(first - starts, number)
        cost = after[end] - end * np.repeat(z[begin], number)
        least = np.minimum.reduceat(cost, starts)
        at = np.flatnonzero(cost == np.repeat(least, number))
        ends[begin] = end[at[np.searchsorted(at, starts)]]
        best[begin] = least + begin * z[begin] - sums[begin]
        stride //= 2
    return best, ends[:count]
