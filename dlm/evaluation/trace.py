"""Traces of sampling: what every step of a sampler did, as one page to open in a browser.

A `Trace` is an `OnStep`. Of each step it keeps only what happened, as *events* at positions; the
events up to a step, replayed, give the state after it exactly:

    noise    not written yet: hidden, or a token that was drawn from the noise
    again    hidden, and was not before: the sampler took a token back
    new      was hidden, now shows a token
    changed  showed another token before
    kept     the token stayed, and the model gave it another probability
    prompt   given; first step only

Which positions are noise is known where noise shows: `Process.hidden`, that is MASK, and u of the
lifted process. Elsewhere (uniform noise, a given prior) a token that no step has drawn, one without
a probability, is noise; for tokens that were drawn from noise too, the page can only say in
hindsight that they did not stay until the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.evaluation.generation import Decoder
from dlm.files import replace_text
from dlm.processes import Process
from dlm.samplers.base import Step

EVENTS = ("noise", "again", "new", "changed", "kept", "prompt")
NOISE, AGAIN, NEW, CHANGED, KEPT, PROMPT = range(len(EVENTS))
_NOTHING = -1
_UNFINISHED = "\ufffd"  # what bytes of an unfinished character decode to
_CHARACTER = 4  # bytes of a UTF-8 character at most, so its tokens too
# Control characters as their pictures; a line break and a tab are shown as such.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_END = "\u2403"  # the picture of "end of text"


class Vocabulary(Decoder, Protocol):
    """The part of a tokenizer that a page needs."""

    eos_id: int


class _Rows(NamedTuple):
    """Which rows of a batch (B, L) are recorded, and what is known of them; bool (R, L)."""

    shape: tuple[int, ...]
    chosen: list[int]
    names: list[str]
    given: Tensor
    text: Tensor


class _Frame(NamedTuple):
    """The recorded rows after a step: int64, bool and float32, (R, L)."""

    tokens: Tensor
    hidden: Tensor
    confidence: Tensor


class _Changes(NamedTuple):
    """The events of a step, (N,) each, and its numbers, (R,) each."""

    row: Tensor
    position: Tensor
    token: Tensor
    event: Tensor
    confidence: Tensor
    alpha: Tensor
    calls: Tensor
    kind: str


@final
class Trace:
    """Records one call of a sampler: hand it over as `on_step`.

    Args:
        process: of the predictor.
        frozen: bool (B, L), positions that are given (`Prompt.frozen`); None: none.
        lengths: int64 (B,), where padding begins; None: there is none.
        names: what the page calls the rows of the batch, B of them; None: "row 0", ...
        rows: which rows of the batch to record; None: all.
    """

    def __init__(
        self,
        process: Process,
        *,
        frozen: Tensor | None = None,
        lengths: Tensor | None = None,
        names: Sequence[str] | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        self.process = process
        self._asked = (frozen, lengths, names, rows)
        self._rows: _Rows | None = None
        self._steps: list[_Changes] = []
        self._before: _Frame | None = None

    def __call__(self, step: Step) -> None:
        """Record a step.

        Raises:
            UserError: for another batch than that of the steps before, or than that of `frozen`,
                `lengths`, `names` and `rows`.
        """
        if self._rows is None:
            self._rows = _rows_of(step.state.tokens, *self._asked)
            self._shown = torch.zeros_like(self._rows.given)  # a step wrote a token here
        if step.state.tokens.shape != self._rows.shape or step.index < len(self._steps):
            raise UserError(
                f"a Trace records one call of a sampler, and after {len(self._steps)} steps got "
                f"step {step.index} with tokens {tuple(step.state.tokens.shape)}; make a new Trace "
                "for every call"
            )
        rows = torch.tensor(self._rows.chosen, device=step.state.tokens.device)
        now = _Frame(
            step.state.tokens[rows].cpu(),
            self.process.hidden(step.state)[rows].cpu(),
            step.confidence[rows].cpu(),
        )
        events = self._events(now, step.kind, self._rows)
        row, position = (events != _NOTHING).nonzero(as_tuple=True)
        self._steps.append(
            _Changes(
                row.int(),
                position.int(),
                now.tokens[row, position].int(),
                events[row, position],
                now.confidence[row, position],
                step.alpha[rows].cpu(),
                step.calls[rows].cpu(),
                step.kind,
            )
        )
        self._before = now

    def _events(self, now: _Frame, kind: str, rows: _Rows) -> Tensor:
        """What happened at each position, int8 (R, L)."""
        before = self._before or _Frame(
            torch.full_like(now.tokens, -1),  # not known: other than any token
            torch.full_like(now.hidden, self.process.reveals),
            torch.full_like(now.confidence, torch.nan),
        )
        same = now.tokens == before.tokens
        other_chance = (now.confidence != before.confidence) & ~(
            now.confidence.isnan() & before.confidence.isnan()
        )
        written = ~now.hidden & (before.hidden | ~same)
        bare = now.confidence.isnan() & (not self.process.reveals) & (kind == "predict")
        hides = now.hidden & (~before.hidden | ~same)
        events = torch.full(now.tokens.shape, _NOTHING, dtype=torch.int8)
        events[~now.hidden & other_chance] = KEPT
        events[written] = CHANGED
        events[written & before.hidden] = NEW
        events[written & bare] = NOISE
        events[hides] = NOISE
        events[hides & self._shown] = AGAIN
        if self._before is None:
            events[rows.given] = PROMPT
        events[~rows.text] = _NOTHING
        self._shown |= events == NEW
        return events

    def rows(self) -> Iterator[dict[str, Any]]:
        """The recorded rows as the page reads them.

        Each has a `name`, its `length`, `kinds`, `alpha` and `calls` by step, and by step its
        `changes`: positions, tokens, events (numbers into `EVENTS`) and probabilities (-1: none).

        Raises:
            UserError: if no step was recorded.
        """
        if self._rows is None:
            raise UserError(
                "no step was traced: there was nothing to write, or the Trace was not handed to a "
                "sampler (on_step=trace)"
            )
        for n, name in enumerate(self._rows.names):
            yield {
                "name": name,
                "length": int(self._rows.text[n].sum()),
                "kinds": [step.kind for step in self._steps],
                "alpha": [_short(float(step.alpha[n])) for step in self._steps],
                "calls": [int(step.calls[n]) for step in self._steps],
                "changes": [_of_row(step, n) for step in self._steps],
            }


def trace_page(
    traces: Sequence[Trace], tokenizer: Vocabulary, about: Mapping[str, Any] | None = None
) -> str:
    """One HTML page of all rows that were recorded; it needs no other file and no network.

    Args:
        traces: one a call of a sampler.
        tokenizer: of the tokens.
        about: what else to show, ready for JSON: the sampler, the checkpoint, the seed.

    Raises:
        UserError: if nothing was traced.
    """
    rows = [row for trace in traces for row in trace.rows()]
    if not rows:
        raise UserError("a page needs a Trace, and got none")
    blanks = {trace.process.mask_id for trace in traces}
    used = sorted({token for row in rows for change in row["changes"] for token in change[1]})
    pieces = {token: "" if token in blanks else _piece(tokenizer, token) for token in used}
    data = {
        "about": dict(about or {}),
        "events": EVENTS,
        "pieces": pieces,
        "characters": _characters(rows, pieces, tokenizer),
        "rows": rows,
    }
    # No "<" reaches the page, so no text can end the script element or open a comment in it.
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    template = files("dlm.evaluation").joinpath("trace.html").read_text("utf-8")
    return template.replace("{{data}}", embedded)


def write_trace(
    path: str | Path,
    traces: Sequence[Trace],
    tokenizer: Vocabulary,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write `trace_page` to a file, whole or not at all.

    Raises:
        UserError: if nothing was traced.
        OSError: if the file cannot be written.
    """
    replace_text(Path(path), trace_page(traces, tokenizer, about))


def _rows_of(
    tokens: Tensor,
    frozen: Tensor | None,
    lengths: Tensor | None,
    names: Sequence[str] | None,
    rows: Sequence[int] | None,
) -> _Rows:
    """Check what was given against a batch (B, L), and choose the rows."""
    batch, length = tokens.shape
    frozen = torch.zeros(batch, length) if frozen is None else frozen
    lengths = torch.full((batch,), length) if lengths is None else lengths
    names = [f"row {n}" for n in range(batch)] if names is None else names
    chosen = list(range(batch)) if rows is None else list(rows)
    if frozen.shape != tokens.shape or not len(lengths) == len(names) == batch:
        raise UserError(
            f"a Trace of tokens {(batch, length)} was given frozen positions "
            f"{tuple(frozen.shape)}, {len(lengths)} lengths and {len(names)} names"
        )
    if not chosen or not all(0 <= row < batch for row in chosen):
        raise UserError(f"a Trace of a batch of {batch} cannot record the rows {chosen}")
    text = torch.arange(length) < lengths.cpu()[chosen, None]
    given = frozen.cpu()[chosen].bool()
    return _Rows(tokens.shape, chosen, [names[row] for row in chosen], given, text)


def _of_row(step: _Changes, row: int) -> list[list[Any]]:
    here = step.row == row
    chances = step.confidence[here].double().exp().clamp(max=1.0).tolist()
    return [
        step.position[here].tolist(),
        step.token[here].tolist(),
        step.event[here].tolist(),
        [-1 if math.isnan(chance) else _short(chance) for chance in chances],
    ]


def _short(number: float) -> float:
    """To the digits that are shown."""
    return float(f"{number:.3g}")


def _piece(tokenizer: Vocabulary, token: int) -> str:
    """The text of one token inside a text: decoders may drop a space at the beginning."""
    if token == tokenizer.eos_id:
        return _END
    once, twice = tokenizer.decode([token]), tokenizer.decode([token, token])
    text = twice.removeprefix(once) if twice.startswith(once) else once
    return text.translate(_PICTURES) or f"\u27e8{token}\u27e9"


def _characters(
    rows: Sequence[Mapping[str, Any]], pieces: Mapping[int, str], tokenizer: Vocabulary
) -> dict[str, str]:
    """Neighbours that are whole characters only together: their text by "id,id".

    Tokens of bytes can hold a part of a character; alone such a part is shown as U+FFFD.
    """
    parts = {token for token, text in pieces.items() if _UNFINISHED in text}
    found: dict[tuple[int, ...], str | None] = {}
    for row in rows if parts else ():
        tokens = [-1] * row["length"]
        for positions, values, *_ in row["changes"]:
            for position, token in zip(positions, values, strict=True):
                tokens[position] = token
            for position, token in zip(positions, values, strict=True):
                if token in parts:
                    for run in _runs_through(tokens, position, parts):
                        if run not in found:
                            text = tokenizer.decode(run)
                            found[run] = None if _UNFINISHED in text else text
    return {
        ",".join(map(str, run)): text.translate(_PICTURES)
        for run, text in found.items()
        if text is not None
    }


def _runs_through(tokens: list[int], position: int, parts: set[int]) -> Iterator[tuple[int, ...]]:
    """Runs of 2 to 4 parts of characters that contain a position."""
    for size in range(2, _CHARACTER + 1):
        for start in range(max(0, position - size + 1), position + 1):
            run = tuple(tokens[start : start + size])
            if len(run) == size and parts.issuperset(run):
                yield run
