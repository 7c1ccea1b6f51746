"""Files of a run that grow by appending and survive `kill -9`: metrics, timing, samples.

One record a line, each with the step it belongs to. The contract that makes a killed and resumed
run leave the file of an uninterrupted one: (1) records of step n are flushed to disk before the
checkpoint of step n is written, (2) the first record that a process writes, of step m, removes
those of step m and later, which a killed process had written beyond its checkpoint, and half a line
at the end. Since a resumed run repeats the steps after its checkpoint exactly, nothing is missing
and nothing is there twice.

`metrics.csv` holds what is a function of the run alone, to the last bit. Wall-clock numbers, whose
names start with "time/", stand in `timing.csv` beside it.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from dlm.files import replace_text

TIME = "time/"  # prefix of wall-clock metrics


@final
class StepFile:
    """An append-only text file of records with a step.

    Args:
        path: the file; made, with its folder, by the first record.
        step_of: the step of a line of it.
        head: the line it starts with, empty for none.
    """

    def __init__(self, path: Path, step_of: Callable[[str], int], head: str = "") -> None:
        self.path = path
        self.head = head
        self._step_of = step_of
        self._opened = False

    def append(self, step: int, line: str) -> None:
        """Add the record of a step, at once on disk; the first one removes what is beyond it."""
        if not self._opened:
            self.rewrite(self.head, [x for x in self.lines() if self._step_of(x) < step])
            self._opened = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[str]:
        """The whole lines of the file without its head."""
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            lines = [line for line in file if line.endswith("\n")]
        return lines[1:] if self.head else lines

    def rewrite(self, head: str, lines: list[str]) -> None:
        """Replace the whole file."""
        self.head = head
        replace_text(self.path, head + "".join(lines))


@final
class _Table:
    """A CSV file with one row a step; columns are added when they first appear."""

    def __init__(self, path: Path) -> None:
        columns = ["step"]
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                columns = next(csv.reader(file), columns)
        self._columns = columns
        self._file = StepFile(path, lambda line: int(line.split(",", 1)[0]), _line(columns))
        self._row: dict[str, Any] = {}

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Put values into the row of a step; a new step writes the row before."""
        if self._row and self._row["step"] != step:
            self.flush()
        self._row = {"step": step, **self._row, **values}

    def flush(self) -> None:
        """Write the row."""
        if not self._row:
            return
        if new := [name for name in self._row if name not in self._columns]:
            self._columns += new
            lines = [line.rstrip("\n") + "," * len(new) + "\n" for line in self._file.lines()]
            self._file.rewrite(_line(self._columns), lines)
        row = [self._row.get(name, "") for name in self._columns]
        self._file.append(self._row["step"], _line(row))
        self._row = {}


def _line(cells: list[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


@final
class MetricsCSV(Logger):
    """Writes `metrics.csv` and `timing.csv`: a column `step`, and one for each metric.

    Everything that is logged at one step is one row. A row is written when the next step logs, or
    by `save`. Floats are written so that reading gives the same bits.

    Args:
        folder: where the files stand.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._metrics = _Table(self._folder / "metrics.csv")
        self._timing = _Table(self._folder / "timing.csv")

    @property
    def name(self) -> str:
        """Name of the logger, as Lightning wants it."""
        return "csv"

    @property
    def version(self) -> str:
        """A run folder holds one run: no versions."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the files."""
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the settings of a run stand in its `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of a step."""
        timing = {name: value for name, value in metrics.items() if name.startswith(TIME)}
        others = {name: value for name, value in metrics.items() if name not in timing}
        for table, values in ((self._metrics, others), (self._timing, timing)):
            if values:
                table.add(step or 0, values)

    @rank_zero_only
    def save(self) -> None:
        """Bring everything logged so far to disk."""
        self._metrics.flush()
        self._timing.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Bring everything to disk at the end of the run."""
        self.save()


def json_lines(path: Path) -> StepFile:
    """An append-only file of JSON objects, each with a key `step`."""
    return StepFile(path, lambda line: json.loads(line)["step"])


def json_record(record: Mapping[str, Any]) -> str:
    """One line of such a file."""
    return json.dumps(record, ensure_ascii=False) + "\n"
