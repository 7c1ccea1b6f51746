"""`dlm fit checkpoint=P output=DIR/schedule/NAME.yaml`: a schedule and times fitted to a model.

The loss of the model is measured by noise level. Two files are written, options for the next
training: a schedule on which every time has the same expected loss, and a density of training times
under the schedule that the model was trained with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml
from rich.table import Table

from dlm.cli.common import (
    as_text,
    check_outputs,
    compose_arguments,
    number,
    progress_bar,
    request,
    say,
    screen,
    table,
    write_text,
)
from dlm.cli.saved import Saved, chosen
from dlm.data import Batch, Blocks
from dlm.errors import UserError
from dlm.evaluation.profile import Profile, measure_profile
from dlm.schedules import Piecewise, Schedule


@final
@dataclass(frozen=True)
class FitRequest:
    """The keys of `configs/fit.yaml`; None is what the checkpoint says."""

    checkpoint: str
    output: str
    split: str
    bins: int
    draws: int
    seed: int
    precision: str | None
    batch_size: int
    device: str | None
    trust: Sequence[str]
    data: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("draws", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        path = Path(self.output)
        if path.parent.name != "schedule" or path.suffix != ".yaml":
            raise UserError(
                f"output must be DIR/schedule/NAME.yaml, so that --config-dir=DIR finds the "
                f"schedule by its name, got {self.output!r}"
            )

    @property
    def times(self) -> str:
        """The file of the times, DIR/times/NAME.yaml."""
        path = Path(self.output)
        return str(path.parent.parent / "times" / path.name)


def run(arguments: Sequence[str]) -> None:
    """Measure, show and write.

    Raises:
        UserError: a checkpoint, data or a setting that does not fit.
    """
    config = compose_arguments("fit", arguments).plain()
    keys = request(FitRequest, {**config, "precision": as_text(config["precision"])})
    check_outputs(keys.output, keys.times)
    saved = Saved.of(keys)
    blocks, denoiser = saved.blocks(saved.classes), saved.loaded.denoiser
    each = max(1, round(keys.draws / max(1, len(blocks))))
    profile = measure_profile(
        denoiser,
        _with_progress(blocks, keys, each),
        bins=keys.bins,
        draws=each,
        seed=keys.seed,
        precision=saved.precision,
    )
    schedule = denoiser.process.schedule
    fitted = profile.flat_schedule()
    console = screen()
    console.print(_levels(profile))
    console.print(_summary(profile, schedule, fitted))
    _write(keys, profile, schedule, fitted)
    folder, name = Path(keys.output).parent.parent, Path(keys.output).stem
    say(console, "try next:")
    say(console, f"  dlm train --config-dir={folder} schedule={name}")
    say(console, f"  dlm train --config-dir={folder} times={name}   (with {schedule})")


def _with_progress(blocks: Blocks, keys: FitRequest, each: int) -> Iterator[Batch]:
    share = min(1, keys.draws / max(1, len(blocks)))
    with progress_bar("fit", blocks.num_tokens * share * each) as advance:
        for batch in chosen(blocks, keys.draws, keys.batch_size):
            yield batch
            advance(int(batch.valid.sum()) * each)


def _levels(profile: Profile) -> Table:
    """The integrand by noise level."""
    edges, draws = profile.edges.tolist(), profile.sums[0].tolist()
    moments = [profile.moment(centred).sqrt().tolist() for centred in (True, False)]
    columns = zip(profile.mean.tolist(), profile.stderr.tolist(), *moments, draws, strict=True)
    grid = Table(title="the loss by noise level 1 - alpha", title_justify="left")
    for name in ("from", "to", "nats/token", "stderr", "sd nats/row", "rms nats/row", "draws"):
        grid.add_column(name, justify="right")
    for low, high, (mean, stderr, sd, rms, count) in zip(
        edges[:-1], edges[1:], columns, strict=True
    ):
        values = (f"{mean:.3f}", f"{stderr:.3f}", f"{sd:,.0f}", f"{rms:,.0f}", f"{count:,.0f}")
        grid.add_row(f"{low:.2g}", f"{high:.2g}", *values)
    return grid


def _summary(profile: Profile, schedule: Schedule, fitted: Piecewise) -> Table:
    bound = profile.bound()
    before, after = (100 * profile.spread_in_time(each) for each in (schedule, fitted))
    nelbo = f"{number(bound.nelbo)} +- {number(bound.stderr)}"
    return table(
        "the loss over time, before and after",
        {
            "nelbo (nats/token)": f"{nelbo} on any schedule",
            f"std over t, {type(schedule).__name__}": f"{before:.1f} % of the mean",
            "std over t, fitted": f"{after:.1f} % of the mean",
        },
    )


def _write(keys: FitRequest, profile: Profile, schedule: Schedule, fitted: Piecewise) -> None:
    origin = f"# fitted to {keys.checkpoint}, {keys.split} split"
    target = {"_target_": "dlm.schedules.Piecewise", "knots": list(fitted.knots)}
    times = {
        "_target_": "dlm.times.ImportanceSampled",
        "density": [round(d, 6) for d in profile.density(schedule)],
        "bins": keys.bins,
        "even_share": 0.1,
    }
    for file, note, content in (
        (keys.output, "equal loss in equal times", target),
        (keys.times, f"times for {schedule}", times),
    ):
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
        write_text(file, f"{origin}: {note}\n{text}")
        say(screen(), f"wrote {file}")
