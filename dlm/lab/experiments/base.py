"""What every experiment of the lab gives back: measured series, claims about them, a verdict.

An experiment computes numbers, mostly exact ones, and holds each against a prediction. A `Claim` is
one such comparison and says where its prediction comes from:

    paper           a statement of a paper, which `reference` names
    derived here    derived from definitions, in `dlm.lab.rates` or in the experiment's own file
    ours            a property of the components of this package

The verdict is fixed before the numbers are known: `relation` and `tolerance` are written in the
code, never fitted. Series are for the figure and for the JSON file; claims decide.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal, final

Source = Literal["paper", "derived here", "ours"]
Relation = Literal["equal", "at most", "at least"]
Role = Literal["measured", "predicted", "slope"]


@final
@dataclass(frozen=True)
class Claim:
    """One comparison.

    Args:
        name: what is compared, in words.
        measured: what came out.
        predicted: what should.
        tolerance: absolute; how far on the wrong side still agrees.
        source: of the prediction.
        relation: how measured should stand to predicted.
        reference: paper, theorem, file.
    """

    name: str
    measured: float
    predicted: float
    tolerance: float
    source: Source
    relation: Relation = "equal"
    reference: str = ""

    @property
    def holds(self) -> bool:
        """Whether they agree; what is not a finite number never does."""
        gap = self.measured - self.predicted
        if not isfinite(gap):
            return False
        if self.relation == "at most":
            return gap <= self.tolerance
        if self.relation == "at least":
            return gap >= -self.tolerance
        return abs(gap) <= self.tolerance


@final
@dataclass(frozen=True)
class Series:
    """One line of a panel: measured points, a predicted curve, or a slope to compare with."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    role: Role = "measured"


@final
@dataclass(frozen=True)
class Panel:
    """One pair of axes; with `ticks` the places 1, 2, ... on the x axis have names."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = True
    log_y: bool = True
    ticks: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Result:
    """What an experiment found."""

    panels: tuple[Panel, ...]
    claims: tuple[Claim, ...]

    @property
    def holds(self) -> bool:
        """Whether all claims hold, and there are some."""
        return bool(self.claims) and all(claim.holds for claim in self.claims)

    def rows(self) -> list[dict[str, Any]]:
        """The measured and the predicted points, one a row."""
        return [
            {"panel": panel.title, "series": s.label, "role": s.role, "x": float(x), "y": float(y)}
            for panel in self.panels
            for s in panel.series
            if s.role != "slope"
            for x, y in zip(s.x, s.y, strict=True)
        ]

    def plain(self) -> dict[str, Any]:
        """Everything, as plain values; numbers that are not finite are null."""
        claims = [{**asdict(claim), "holds": claim.holds} for claim in self.claims]
        return {
            "holds": self.holds,
            "claims": [_finite(claim) for claim in claims],
            "rows": [_finite(row) for row in self.rows()],
        }

    def figure(self, path: Path, title: str) -> None:
        """Draw the panels as a PNG."""
        from dlm.lab.experiments.figures import draw

        draw(self.panels, title, path)


class Experiment(ABC):
    """One question with a predicted answer. Settings are constructor arguments.

    `about` is one line for lists.
    """

    about: ClassVar[str]

    @abstractmethod
    def run(self) -> Result:
        """Compute."""


def slope_line(x: Sequence[float], through: float, order: float, label: str = "") -> Series:
    """A reference line y ~ x^order through the first measured value."""
    y = [through * (value / x[0]) ** order for value in x]
    return Series(label or f"slope {order:g}", x, y, "slope")


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in values.items()}
