"""The figures of the lab: one way to draw every experiment, from its panels alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlm.files import replace_file
from dlm.lab.experiments.base import Panel, Role

_STYLE: dict[Role, dict[str, object]] = {
    "measured": {"marker": "o", "markersize": 4, "linewidth": 1.4},
    "predicted": {"linestyle": "--", "linewidth": 1.2, "color": "black", "alpha": 0.7},
    "slope": {"linestyle": ":", "linewidth": 1.2, "color": "gray"},
}
_MANY = 4000  # twelve doublings
_FEW = 2  # predicted lines that are named each
_ALL = "predicted"
_LONG = 6  # names in a legend that stands inside
_WIDTH, _HEIGHT, _DPI = 5.4, 4.2, 120


def draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draw panels side by side, in rows of at most three.

    Args:
        panels: at least one.
        title: above all of them.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # a second of import, only here

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel)
    figure.suptitle(title)
    replace_file(path, lambda draft: figure.savefig(draft, dpi=_DPI, format="png"))


def _draw_panel(axes, panel: Panel) -> None:
    dashed = sum(series.role == "predicted" for series in panel.series)
    for series in panel.series:
        above = [(x, y) for x, y in zip(series.x, series.y, strict=True) if _shown(panel, x, y)]
        style = dict(_STYLE[series.role])
        if panel.ticks and series.role == "measured":
            style["linestyle"] = "none"  # names have no order
        label = series.label
        if dashed > _FEW and series.role == "predicted":  # they lie on their measured lines
            label = "" if axes.get_legend_handles_labels()[1].count(_ALL) else _ALL
        axes.plot([x for x, _ in above], [y for _, y in above], label=label or None, **style)
    if panel.ticks:
        axes.set_xticks(range(1, len(panel.ticks) + 1), panel.ticks, rotation=30, ha="right")
    elif panel.log_x and any(x > 0 for series in panel.series for x in series.x):
        axes.set_xscale("log", base=_base(panel))
        axes.xaxis.set_major_formatter("{x:g}")
    if panel.log_y and any(y > 0 for series in panel.series for y in series.y):
        axes.set_yscale("log")
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    names = axes.get_legend_handles_labels()[1]
    outside = panel.ticks or len(names) > _LONG
    axes.legend(fontsize=7, **({"loc": "upper left", "bbox_to_anchor": (1, 1)} if outside else {}))


def _base(panel: Panel) -> int:
    """Of the ticks: doublings, or decades where there are many."""
    x = [x for series in panel.series for x in series.x if x > 0]
    return 10 if max(x) > _MANY * min(x) else 2


def _shown(panel: Panel, x: float, y: float) -> bool:
    """Zero has no place on a logarithmic axis."""
    return (x > 0 or not panel.log_x) and (y > 0 or not panel.log_y)
