"""Traces: the events replayed are the states, each event is the right one, no text is markup."""

import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlm.errors import UserError
from dlm.evaluation.trace import EVENTS, Trace, trace_page, write_trace
from dlm.lab import Oracle
from dlm.processes import State
from dlm.random import Key
from dlm.samplers import Ancestral, EvenGrid, GridSampler, Step
from dlm.samplers.base import Prompt
from tests import toys

NAN = float("nan")
MASK = toys.SYMBOLS
NOISE, AGAIN, NEW, CHANGED, KEPT, PROMPT = EVENTS


class Letters:
    """a, b, c, ..."""

    eos_id = 25

    def decode(self, ids):
        return "".join(chr(97 + token) for token in ids if token != self.eos_id)


def step(index, tokens, confidence, *, noise=None, kind="predict", alpha=0.5, calls=1):
    """A step of one sequence, or of several."""
    tokens = torch.tensor(tokens).reshape(-1, len(confidence))
    kept = None if noise is None else torch.tensor(noise).expand_as(tokens)
    batch = len(tokens)
    return Step(
        index,
        State(tokens, kept),
        torch.full((batch,), alpha, dtype=torch.float64),
        torch.tensor(confidence).log().expand_as(tokens),
        torch.full((batch,), calls),
        kind,
    )


def read(page):
    """The data of a page."""
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    return json.loads(text)


def events(trace):
    """By step: {position: event} of the first row."""
    row = next(trace.rows())
    return [
        {where: EVENTS[event] for where, event in zip(change[0], change[2], strict=True)}
        for change in row["changes"]
    ]


def replay(row):
    """By step: tokens, last events and probabilities of all positions."""
    now = [None] * row["length"]
    for change in row["changes"]:
        for where, token, event, chance in zip(*change, strict=True):
            now[where] = (token, EVENTS[event], chance)
        yield list(now)


def test_events_of_a_masked_process():
    trace = Trace(toys.absorbing(), frozen=torch.tensor([[True, False, False, False]]))
    trace(step(0, [0, 1, MASK, MASK], [NAN, 0.5, NAN, NAN]))
    trace(step(1, [0, 1, 2, MASK], [NAN, 0.5, 0.25, NAN]))
    trace(step(2, [0, 2, MASK, MASK], [NAN, 0.75, NAN, NAN], kind="correct"))
    trace(step(3, [0, 2, 2, 1], [NAN, 0.125, NAN, 1.0625]))  # rounding can say more than 1
    assert events(trace) == [
        {0: PROMPT, 1: NEW, 2: NOISE, 3: NOISE},
        {2: NEW},
        {1: CHANGED, 2: AGAIN},
        {1: KEPT, 2: NEW, 3: NEW},
    ]
    (row,) = trace.rows()
    assert row["kinds"] == ["predict", "predict", "correct", "predict"]
    assert list(replay(row))[-1] == [
        (0, PROMPT, -1),
        (2, KEPT, 0.125),
        (2, NEW, -1),
        (1, NEW, 1.0),
    ]


def test_noise_of_the_lifted_process_is_where_u_shows():
    trace = Trace(toys.lifted())
    u = [0, 1, 2]
    trace(step(0, [0, 1, 1], [NAN, NAN, 0.5], noise=u))
    trace(step(1, [1, 1, 2], [0.5, NAN, NAN], noise=u))
    trace(step(2, [1, 0, 0], [0.5, NAN, NAN], noise=[0, 0, 0]))  # u drawn anew
    assert events(trace) == [
        {0: NOISE, 1: NOISE, 2: NEW},
        {0: NEW, 2: AGAIN},
        {1: NOISE, 2: AGAIN},
    ]


@pytest.mark.parametrize("make", [toys.uniform, toys.prior])
def test_without_a_mask_what_no_step_drew_is_noise(make):
    trace = Trace(make())
    trace(step(0, [0, 1, 2, 2], [NAN, 0.5, NAN, NAN]))
    trace(step(1, [0, 2, 1, 2], [NAN, 0.5, NAN, 0.5]))
    trace(step(2, [1, 2, 1, 2], [NAN, 0.5, NAN, 0.5], kind="correct"))
    assert events(trace) == [
        {0: NOISE, 1: CHANGED, 2: NOISE, 3: NOISE},
        {1: CHANGED, 2: NOISE, 3: KEPT},
        {0: CHANGED},
    ]


def test_a_mask_beside_uniform_noise():
    trace = Trace(toys.hybrid())
    trace(step(0, [MASK, 1], [NAN, 0.5]))
    trace(step(1, [2, 0], [0.5, 0.5]))
    assert events(trace) == [{0: NOISE, 1: NEW}, {0: NEW, 1: CHANGED}]


CELL = st.tuples(st.integers(0, MASK), st.sampled_from([0.125, 0.5, None]))


@given(st.lists(st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_events_give_every_state_back(states):
    trace = Trace(toys.absorbing())
    for index, cells in enumerate(states):
        chances = [NAN if p is None or token == MASK else p for token, p in cells]
        trace(step(index, [token for token, _ in cells], chances))
    (row,) = trace.rows()
    ever = [False] * 3
    before = [MASK] * 3
    for cells, seen in zip(states, replay(row), strict=True):
        for i, ((token, p), (found, event, chance)) in enumerate(zip(cells, seen, strict=True)):
            assert found == token
            assert chance == (-1 if p is None or token == MASK else p)
            assert (token == MASK) == (event in (NOISE, AGAIN))
            if token == MASK:
                assert (event == AGAIN) == ever[i]
            elif token != before[i]:
                assert event == (NEW if before[i] == MASK else CHANGED)
            before[i], ever[i] = token, ever[i] or token != MASK


def test_nothing_is_kept_where_nothing_happened():
    trace = Trace(toys.absorbing())
    for index in range(3):
        trace(step(index, [0, MASK], [0.5, NAN]))
    (row,) = trace.rows()
    assert [len(change[0]) for change in row["changes"]] == [2, 0, 0]


def test_a_page_of_a_long_run_is_small():
    steps, length = 128, 2048
    opened = torch.rand(length, generator=torch.Generator().manual_seed(0)) * steps
    trace = Trace(toys.absorbing())
    for index in range(steps):
        shown = opened <= index + 1
        confidence = torch.where(shown, -0.12345, torch.nan)[None]
        tokens = torch.where(shown, 1, MASK)[None]
        trace(Step(index, State(tokens), torch.ones(1), confidence, torch.ones(1).long()))
    assert len(trace_page([trace], Letters())) < 40 * length + 16_000  # not steps * length


@pytest.mark.parametrize("make", [toys.absorbing, toys.uniform, toys.lifted, toys.hybrid])
def test_a_real_sampler_is_traced_to_its_samples(make):
    process, law = make(), toys.correlated_law(length=3)
    frozen = torch.tensor([[True, False, False]] * 4)
    prompt = Prompt(torch.ones(4, 3, dtype=torch.int64), frozen)
    trace = Trace(process, frozen=frozen)
    seen = []

    def on_step(told):
        seen.append(told)
        trace(told)

    sampler = GridSampler(Ancestral(), EvenGrid(), steps=6)
    key = Key(0, torch.arange(4))
    samples = sampler(Oracle(law, process), (4, 3), key=key, prompt=prompt, on_step=on_step)
    for n, row in enumerate(trace.rows()):
        for told, found in zip(seen, replay(row), strict=True):
            assert [token for token, *_ in found] == told.state.tokens[n].tolist()
            sure = told.confidence[n].exp().nan_to_num(-1).tolist()
            assert [chance for *_, chance in found] == pytest.approx(sure, abs=1e-3)
            assert found[0] == (1, PROMPT, -1)
        assert [token for token, *_ in found] == samples.tokens[n].tolist()
        assert row["calls"][-1] == samples.calls[n]
        assert row["alpha"][-1] == 1


def test_rows_names_and_lengths():
    steps = step(0, [[0, 1, MASK], [1, MASK, MASK], [2, 2, 2]], [NAN] * 3)
    trace = Trace(
        toys.absorbing(), lengths=torch.tensor([3, 3, 2]), names=["x", "y", "z"], rows=[2, 0]
    )
    trace(steps)
    assert [(row["name"], row["length"]) for row in trace.rows()] == [("z", 2), ("x", 3)]
    assert [row["changes"][0][1] for row in trace.rows()] == [[2, 2], [0, 1, MASK]]
    everything = Trace(toys.absorbing())
    everything(steps)
    page = read(trace_page([trace, everything], Letters(), {"seed": 3}))
    assert [row["name"] for row in page["rows"]] == ["z", "x", "row 0", "row 1", "row 2"]
    assert page["about"] == {"seed": 3}
    assert page["pieces"] == {"0": "a", "1": "b", "2": "c", str(MASK): ""}


def test_a_trace_does_not_follow_tensors_that_change_later():
    trace, told = Trace(toys.absorbing()), step(0, [0, MASK], [0.5, NAN])
    trace(told)
    told.state.tokens.fill_(1)
    trace(step(1, [0, MASK], [0.5, NAN]))
    assert events(trace)[1] == {}


class Pieces:
    """Tokens with any text."""

    eos_id = 99

    def __init__(self, *texts):
        self.texts = texts

    def decode(self, ids):
        return "".join(self.texts[token] for token in ids)


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<b>&\"'",
    "\u2028\n\\",
    "{{data}}",
]


def test_no_text_is_markup():
    trace = Trace(toys.uniform(symbols=5), names=["<i>"])
    trace(step(0, [0, 1, 2, 3, 4], [1.0] * 5))
    page = trace_page([trace], Pieces(*HOSTILE), {"prompt": "</script>"})
    data = read(page)
    assert list(data["pieces"].values()) == HOSTILE
    assert (data["rows"][0]["name"], data["about"]) == ("<i>", {"prompt": "</script>"})
    harmless = Trace(toys.uniform(symbols=5))
    harmless(step(0, [0, 1, 2, 3, 4], [1.0] * 5))
    assert page.count("<") == trace_page([harmless], Pieces(*"abcde")).count("<")
    assert page.isascii()


def test_a_page_needs_nothing_else():
    trace = Trace(toys.absorbing())
    trace(step(0, [0], [1.0]))
    page = trace_page([trace], Letters())
    assert "default-src 'none'" in page
    assert not re.findall(r"https?:|@import|<link[^>]*stylesheet|\ssrc=|url\(", page)


class Spaces:
    """A decoder that drops the first space; 3 is a control character, 4 has no text."""

    eos_id = 5

    def decode(self, ids):
        return "".join(["", " the", "s", "\x00\r\x7f", "", ""][token] for token in ids).lstrip(" ")


def test_pieces_are_as_inside_a_text():
    trace = Trace(toys.uniform(symbols=6))
    trace(step(0, [1, 2, 3, 4, 5], [1.0] * 5))
    pieces = read(trace_page([trace], Spaces()))["pieces"]
    assert list(pieces.values()) == [" the", "s", "\u2400\u240d\u2421", "\u27e84\u27e9", "\u2403"]


class Bytes:
    """Bytes as tokens."""

    eos_id = 256

    def decode(self, ids):
        return bytes(token for token in ids if token != self.eos_id).decode(errors="replace")


def test_bytes_of_a_character_are_put_together_where_they_meet():
    a, b = "é".encode()
    euro = list("€".encode())
    trace = Trace(toys.uniform(symbols=256))
    trace(step(0, [a, 110, *euro, 110], [1.0] * 6))
    trace(step(1, [a, b, *euro[:1], 110, 110, 110], [1.0] * 6))
    page = read(trace_page([trace], Bytes()))
    assert page["pieces"][str(a)] == "\ufffd"
    assert page["pieces"]["110"] == "n"
    assert page["characters"] == {f"{a},{b}": "é", ",".join(map(str, euro)): "€"}


def test_write_is_the_page(tmp_path):
    trace = Trace(toys.absorbing())
    trace(step(0, [0], [1.0]))
    write_trace(tmp_path / "deep" / "t.html", [trace], Letters(), {"seed": 0})
    written = (tmp_path / "deep" / "t.html").read_text("utf-8")
    assert written == trace_page([trace], Letters(), {"seed": 0})
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_trace(tmp_path / "file" / "t.html", [trace], Letters())


def test_refusals():
    with pytest.raises(UserError, match="on_step=trace"):
        trace_page([Trace(toys.absorbing())], Letters())
    with pytest.raises(UserError, match="got none"):
        trace_page([], Letters())
    told = step(0, [0, 1], [NAN, NAN])
    for settings in (
        {"frozen": torch.ones(1, 3).bool()},
        {"lengths": torch.ones(2)},
        {"names": ["a", "b"]},
        {"rows": [1]},
        {"rows": []},
    ):
        with pytest.raises(UserError, match="Trace of"):
            Trace(toys.absorbing(), **settings)(told)
    trace = Trace(toys.absorbing())
    trace(told)
    for again in (told, step(1, [0, 1, 1], [NAN] * 3), step(1, [[0, 1], [0, 1]], [NAN] * 2)):
        with pytest.raises(UserError, match="make a new Trace"):
            trace(again)
