"""Tables and plots for `quality.py`, from what its stage `judge` measured."""

import datetime
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from quality_sets import HELD_OUT
from training_step import table

Found = dict[str, Any]  # a set as `quality.json` has it
Numbers = Mapping[str, Mapping[str, float | None]]
DIGITS = {"judge_perplexity": 1, "calls": 1, "bits_per_byte": 3}
ABOUT = """\
Perplexity is that of the judge, with its 95 % interval over samples; it is relative to this judge.
Low perplexity with low entropy is repetition, not quality. All samples that were drawn are counted.
Columns are budgets of network calls a sample; [brackets] say how many were made in the mean, where
that is less. Blank: refused, or not run. How each number is made: docs/quality.md."""
OTHERS = "Entropy of a sample (nats); distinct-2; share of repeated 4-grams; divergence of bigrams"


def write(found: list[Found], folder: Path | None) -> None:
    """Print the report; with a folder, write it there with one plot a model."""
    stem = f"{datetime.date.today()}-quality"
    models = dict.fromkeys(one["model"] for one in found)
    lines = ["# Quality against network calls", "", *_origin(found), "", ABOUT, ""]
    for model in models:
        mine = [one for one in found if one["model"] == model]
        lines += _model(model, mine)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            _plot(model, mine, folder / f"{stem}-{model}.png")
            lines += [f"![{model}]({stem}-{model}.png)", ""]
    text = "\n".join(lines)
    print(text)
    if folder is not None:
        (folder / f"{stem}.md").write_text(text, "utf-8")


def all_numbers(rows: Mapping[str, Numbers]) -> str:
    """A table of every number of a few sets, by their names."""
    names = list(dict.fromkeys(name for numbers in rows.values() for name in numbers))
    cells = [[row, *(_cell(numbers, name) for name in names)] for row, numbers in rows.items()]
    return table(("set", *names), cells)


def _origin(found: list[Found]) -> list[str]:
    """Hardware, commit and command of the samples and of their scores."""
    lines = []
    scored = [one["scored"] for one in found if one["scored"]]
    drawn = [one for one in found if one["steps"]]
    for what, parts in (("samples", drawn), ("scores", scored)):
        for key in ("judge", "first", "hardware", "commit", "command"):
            values = dict.fromkeys(str(part[key]) for part in parts if key in part)
            lines += [f"- {what}: {key} {'; '.join(f'`{v}`' for v in values)}"] if values else []
    return lines


def _model(model: str, found: list[Found]) -> list[str]:
    drawn = [one for one in found if one["steps"]]
    process = ", ".join(dict.fromkeys(one["process"] for one in drawn))
    sizes = ", ".join(dict.fromkeys(str(one["num"]) for one in drawn))
    lines = [f"## {model} ({process})", "", f"{sizes} samples a set.", ""]
    for one in found:
        if one["setting"] == HELD_OUT:
            lines += [f"Held-out text of the same length, {one['num']} blocks:", ""]
            lines += [all_numbers({HELD_OUT: one["numbers"]}), ""]
    lines += ["Judge perplexity:", "", _grid(drawn, _perplexity), ""]
    return [*lines, f"{OTHERS}:", "", _grid(drawn, _variety), ""]


def _grid(found: list[Found], cell: Callable[[Found], str]) -> str:
    """Settings down, budgets across."""
    budgets = sorted({one["steps"] for one in found})
    cells = {(one["setting"], one["steps"]): cell(one) for one in found}
    rows = [[f"`{s}`", *(cells.get((s, b), "") for b in budgets)] for s in _settings(found)]
    return table(("setting", *map(str, budgets)), rows)


def _settings(found: Iterable[Found]) -> list[str]:
    return sorted({one["setting"] for one in found})


def _perplexity(one: Found) -> str:
    calls = one["numbers"]["calls"]["value"]
    made = f" [{calls:.1f}]" if calls < 0.99 * one["steps"] else ""
    return _cell(one["numbers"], "judge_perplexity") + made


def _variety(one: Found) -> str:
    names = [n for n in ("distinct_2", "repeated_4", "divergence_2") if n in one["numbers"]]
    others = [_round(one["numbers"][name]["value"]) for name in names]
    return "; ".join([_cell(one["numbers"], "entropy"), *others])


def _cell(numbers: Numbers, name: str) -> str:
    if name not in numbers:
        return ""
    value, low, high = (
        _round(numbers[name][k], DIGITS.get(name, 3)) for k in ("value", "low", "high")
    )
    return f"{value} ({low}-{high})"


def _round(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "undefined"
    return f"{value:,.{0 if value >= 100 else digits}f}"


def _plot(model: str, found: list[Found], path: Path) -> None:
    """Perplexity and entropy against calls, and against each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(18, 8), layout="constrained")
    axes = figure.subplots(1, 3)
    views = (("calls", "judge_perplexity"), ("calls", "entropy"), ("entropy", "judge_perplexity"))
    drawn = [one for one in found if one["steps"] and "judge_perplexity" in one["numbers"]]
    for number, setting in enumerate(_settings(drawn)):
        mine = sorted((o for o in drawn if o["setting"] == setting), key=lambda one: one["steps"])
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
        for ax, (across, up) in zip(axes, views, strict=True):
            x, (y, below, above) = _line(mine, across)[0], _line(mine, up)
            ax.errorbar(x, y, [below, above], label=setting, linewidth=1, capsize=2, **style)
    for ax, (across, up) in zip(axes, views, strict=True):
        for one in found:
            if one["setting"] == HELD_OUT:
                x, y = (one["numbers"].get(k, {}).get("value") for k in (across, up))
                line = {"color": "black", "linewidth": 1, "label": HELD_OUT}
                _ = (
                    ax.axhline(y, **line)
                    if x is None
                    else ax.plot(x, y, "*", markersize=12, **line)
                )
        ax.set_xlabel(
            "network calls made, mean" if across == "calls" else "entropy of a sample, nats"
        )
        ax.set_ylabel(
            "judge perplexity" if up == "judge_perplexity" else "entropy of a sample, nats"
        )
        ax.grid(alpha=0.3)
        if across == "calls":
            ax.set_xscale("log", base=2)
        if up == "judge_perplexity":
            ax.set_yscale("log")
    figure.suptitle(f"{model}: 95 % intervals over samples")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    figure.savefig(path, dpi=100)


def _line(found: list[Found], name: str) -> tuple[list[float], list[float], list[float]]:
    """Values, and how far the interval reaches below and above; nothing where undefined."""
    parts = [one["numbers"][name] for one in found]
    values = [p["value"] if p["value"] is not None else float("nan") for p in parts]
    ends = [(v if p["low"] is None else p["low"], v if p["high"] is None else p["high"])
            for p, v in zip(parts, values, strict=True)]  # fmt: skip
    below = [max(0.0, v - low) for v, (low, _) in zip(values, ends, strict=True)]
    return values, below, [max(0.0, high - v) for v, (_, high) in zip(values, ends, strict=True)]
