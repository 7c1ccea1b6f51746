"""The page of a trace in a real browser: what it shows at each step, and that it can be driven."""

import re

import pytest
import torch

from dlm.evaluation.trace import Trace, write_trace
from dlm.lab import Oracle
from dlm.processes import State
from dlm.random import Key
from dlm.samplers import Cap, EvenGrid, Gibbs, GridSampler, ReMDM, Step
from dlm.samplers.base import Prompt
from tests import toys
from tests.browser.chromium import Chromium, find_chromium

NAN = float("nan")
HOSTILE = "</script><script>document.title = 'taken'</script>"
MARKUP = "<b>&\"'\n"
TEXTS = ["the", " cat", HOSTILE, MARKUP, "\ufffd", "\ufffd", "é"]
A, B, EVIL, TAGS, HALF, REST, WHOLE, MASK = range(8)
PROCESS = toys.absorbing(symbols=MASK)


class Pieces:
    """Texts by number; HALF and REST are é together."""

    eos_id = -1

    def decode(self, ids):
        text = "".join(TEXTS[token] for token in ids)
        return text if list(ids) != [HALF, REST] else "é"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("needs a browser: apt-get install chromium (the Debian package)")
    running = Chromium(program, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


def record(process, steps, **settings):
    """A trace of one sequence: (tokens, probabilities) by step."""
    trace = Trace(process, **settings)
    for index, (tokens, chances, *more) in enumerate(steps):
        noise = torch.tensor([more[0]]) if more else None
        trace(
            Step(
                index,
                State(torch.tensor([tokens]), noise),
                torch.tensor([(index + 1) / len(steps)]),
                torch.tensor([chances]).log(),
                torch.tensor([2 * index + 1]),
                "correct" if index == 2 else "predict",
            )
        )
    return trace


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    masked = record(
        PROCESS,
        [
            ([A, B, MASK, MASK, MASK, A], [NAN, 0.5, NAN, NAN, NAN, NAN]),
            ([A, B, EVIL, TAGS, HALF, A], [NAN, 0.5, 0.25, 0.75, 1.0, NAN]),
            ([A, A, MASK, TAGS, HALF, A], [NAN, NAN, NAN, 0.75, 1.0, NAN]),
            ([A, A, TAGS, HALF, REST, A], [NAN, 0.5, 0.125, 0.5, 1.0, NAN]),
        ],
        frozen=torch.tensor([[True, False, False, False, False, True]]),
        names=["<i>masked"],
    )
    lifted = record(
        toys.lifted(),
        [([0, 1], [NAN, NAN], [0, 1]), ([2, 1], [0.5, NAN], [0, 1])],
        names=["lifted"],
    )
    uniform = record(
        toys.uniform(),
        [([0, 1], [NAN, 0.5]), ([0, 1], [0.25, 0.5]), ([0, 2], [0.25, 0.5])],
        names=["uniform"],
    )
    path = tmp_path_factory.mktemp("trace") / "a trace.html"
    about = {"sampler": {"steps": 4}, "prompt": MARKUP}
    write_trace(path, [masked, lifted, uniform], Pieces(), about)
    return path.as_uri()


def classes(page):
    return page.evaluate("[...document.querySelectorAll('main > span')].map((s) => s.className)")


def texts(page):
    return page.evaluate("[...document.querySelectorAll('main > span')].map((s) => s.textContent)")


def counts(page):
    return page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('[data-count]')]"
        ".map((b) => [b.dataset.count, Number(b.textContent)]))"
    )


def content(page, name):
    return page.evaluate(f"document.getElementById('{name}').textContent")


def at(page):
    """Step and text that are shown."""
    return int(content(page, "status").split()[1]), page.evaluate(
        "Number(document.getElementById('row').value)"
    )


SHOWN = [
    (
        "",
        ["prompt", "new passing", "noise", "noise", "noise", "prompt"],
        ["the", " cat", "", "", "", "the"],
        "step 1 of 4 · predict · alpha 0.25 · network calls 1 · noise 3 of 6 tokens",
        {"prompt": 2, "noise": 3, "new": 1, "changed": 0, "again": 0, "kept": 0, "passing": 1},
    ),
    (
        "#step=2&row=0",
        ["prompt", "kept passing", "new passing", "new passing break", "new passing", "prompt"],
        ["the", " cat", HOSTILE, MARKUP, "\ufffd", "the"],
        "step 2 of 4 · predict · alpha 0.5 · network calls 3 · noise 0 of 6 tokens",
        {"prompt": 2, "noise": 0, "new": 3, "changed": 0, "again": 0, "kept": 1, "passing": 4},
    ),
    (
        "#step=3",
        ["prompt", "changed", "again", "kept passing break", "kept passing", "prompt"],
        ["the", "the", "", MARKUP, "\ufffd", "the"],
        "step 3 of 4 · correct · alpha 0.75 · network calls 5 · noise 1 of 6 tokens",
        {"prompt": 2, "noise": 0, "new": 0, "changed": 1, "again": 1, "kept": 2, "passing": 2},
    ),
    (
        "#step=4",
        ["prompt", "kept", "new break", "changed", "changed joined", "prompt"],
        ["the", "the", MARKUP, "é", "", "the"],
        "step 4 of 4 · predict · alpha 1 · network calls 7 · noise 0 of 6 tokens",
        {"prompt": 2, "noise": 0, "new": 1, "changed": 2, "again": 0, "kept": 1, "passing": 0},
    ),
    (
        "#row=1&step=1",
        ["noise", "noise"],
        ["the", " cat"],
        "step 1 of 2 · predict · alpha 0.5 · network calls 1 · noise 2 of 2 tokens",
        {"prompt": 0, "noise": 2, "new": 0, "changed": 0, "again": 0, "kept": 0, "passing": 0},
    ),
    (
        "#row=2&step=1",
        ["noise", "changed passing"],
        ["the", " cat"],
        "step 1 of 3 · predict · alpha 0.333 · network calls 1 · noise 1 of 2 tokens",
        {"prompt": 0, "noise": 1, "new": 0, "changed": 1, "again": 0, "kept": 0, "passing": 1},
    ),
    (
        "#row=2&step=2",
        ["kept", "kept passing"],
        ["the", " cat"],
        "step 2 of 3 · predict · alpha 0.667 · network calls 3 · noise 0 of 2 tokens",
        {"prompt": 0, "noise": 0, "new": 0, "changed": 0, "again": 0, "kept": 2, "passing": 1},
    ),
]


@pytest.mark.parametrize(("fragment", "kinds", "shown", "status", "numbers"), SHOWN)
def test_what_a_step_shows(browser, address, fragment, kinds, shown, status, numbers):
    page = browser.open(address + fragment)
    assert classes(page) == kinds
    assert texts(page) == shown
    assert content(page, "status") == status
    assert counts(page) == numbers
    assert page.problems() == []


@pytest.mark.parametrize(
    ("fragment", "shown"),
    [("#step=99&row=1", (2, 1)), ("#step=-3&row=-1", (1, 0)), ("#step=x&row=9", (1, 2))],
)
def test_an_address_outside_the_trace_leads_to_its_edge(browser, address, fragment, shown):
    page = browser.open(address + fragment)
    assert at(page) == shown
    assert page.problems() == []


def test_no_text_becomes_markup_and_nothing_is_fetched(browser, address):
    page = browser.open(f"{address}#step=2")
    assert page.evaluate("document.title") == "Trace of sampling"
    assert page.evaluate("document.querySelectorAll('main *').length") == 6
    assert page.evaluate("document.querySelector('#row').options[0].text") == "<i>masked"
    assert page.evaluate("[...document.querySelectorAll('dd')].map((d) => d.textContent)") == [
        '{"steps":4}',
        MARKUP,
    ]
    assert page.requests() == [address]
    page.evaluate("fetch('http://localhost:9/').catch(() => { window.refused = true; }); 0")
    page.wait("window.refused")
    assert any("Content Security Policy" in str(problem) for problem in page.problems())


def test_keys(browser, address):
    page = browser.open(address)
    reached = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home", "ArrowLeft"):
        page.press(key)
        reached.append(at(page)[0])
    assert reached == [2, 3, 2, 4, 4, 1, 1]
    page.evaluate("document.getElementById('step').focus()")
    page.press("ArrowRight")  # one step, not the slider's and the page's
    assert at(page) == (2, 0)
    page.evaluate("document.getElementById('on').focus()")
    page.press(" ")  # presses the button, does not play
    assert (at(page), content(page, "play")) == ((3, 0), "play")
    page.press("ArrowLeft")
    assert at(page) == (2, 0)
    page.evaluate("document.getElementById('row').focus()")
    page.press("ArrowDown")
    assert at(page) == (2, 1)
    assert texts(page) == [HOSTILE, " cat"]
    assert page.problems() == []


def test_mouse(browser, address):
    page = browser.open(address)
    page.click("#step", across=0.97)
    assert at(page) == (4, 0)
    assert texts(page)[3] == "é"
    page.click("#back")
    assert at(page) == (3, 0)
    page.click("#on")
    assert at(page) == (4, 0)
    page.wait("location.hash === '#step=4&row=0'")
    assert page.problems() == []


@pytest.mark.parametrize("start", [lambda page: page.press(" "), lambda page: page.click("#play")])
def test_play_runs_to_the_end_and_starts_again(browser, address, start):
    page = browser.open(f"{address}#step=2")
    start(page)
    assert content(page, "play") == "pause"
    page.wait("document.getElementById('play').textContent === 'play'")
    assert at(page) == (4, 0)
    start(page)
    assert at(page) == (1, 0)
    start(page)
    assert content(page, "play") == "play"
    assert page.problems() == []


@pytest.mark.parametrize(
    ("fragment", "position", "said"),
    [
        ("#step=1", 0, 'position 0: "the", token 0, given'),
        ("#step=1", 2, 'position 2: "", token 7, noise, not written yet'),
        ("#step=3", 1, 'position 1: "the", token 0, no probability, written at step 3'),
        ("#step=3", 2, 'position 2: "", token 7, hidden again at step 3'),
        ("#step=4", 1, 'position 1: "the", token 0, probability 0.5, written at step 3'),
        ("#row=2&step=2", 0, 'position 0: "the", token 0, probability 0.25, written at step 2'),
        (
            "#row=2&step=2",
            1,
            'position 1: " cat", token 1, probability 0.5, written at step 1, will not stay',
        ),
    ],
)
def test_pointing_at_a_token_tells_its_story(browser, address, fragment, position, said):
    page = browser.open(address + fragment)
    page.point(f"#p{position}")
    page.wait("document.getElementById('hover').textContent.startsWith('position')")
    assert content(page, "hover") == said


def style(page, selector, name):
    element = f"document.querySelector('{selector}')"
    return page.evaluate(f"getComputedStyle({element}).getPropertyValue('{name}')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours(browser, address, scheme):
    page = browser.open(f"{address}#step=2")
    page.send(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    ink, paper = style(page, "body", "color"), style(page, "body", "background-color")
    assert (_brightness(ink) < _brightness(paper)) == (scheme == "light")
    legend = [f"#legend .{name}" for name in ("prompt", "noise", "new", "changed")]
    assert len({style(page, name, "background-color") for name in legend}) == 4
    assert style(page, "#p1", "background-color").endswith("0.31)")  # .06 + .5 x 0.5
    page.evaluate("location.hash = 'step=3'")
    page.wait("document.getElementById('step').value === '3'")
    assert style(page, "#p2", "outline-style") == "dashed"
    assert style(page, "#p2", "display") == "inline-block"  # a box though it has no text
    assert page.evaluate("document.getElementById('p2').offsetWidth") > 10


def _brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_thousands_of_tokens_and_hundreds_of_steps(browser, tmp_path):
    length, steps = 4096, 256
    opened = torch.rand(length, generator=torch.Generator().manual_seed(0)) * steps
    trace = Trace(PROCESS)
    for index in range(steps):
        shown = (opened <= index + 1)[None]
        state = State(torch.where(shown, B, MASK))
        sure = torch.where(shown, -0.5, torch.nan)
        trace(Step(index, state, torch.full((1,), (index + 1) / steps), sure, torch.tensor([1])))
    write_trace(tmp_path / "long.html", [trace], Pieces())
    page = browser.open((tmp_path / "long.html").as_uri() + "#step=128")
    written = int((opened <= 128).sum())
    assert counts(page)["noise"] == length - written
    assert counts(page)["kept"] + counts(page)["new"] == written
    render = "(() => { const t = performance.now(); go(200); return performance.now() - t; })()"
    assert page.evaluate(render) < 2000  # milliseconds; tens of them on a machine at rest
    assert page.problems() == []


def expected(seen, row, frozen):
    """By step: the classes of a row of a masked run, said again from its states alone."""
    runs = [told.state.tokens[row].tolist() for told in seen]
    symbols = toys.SYMBOLS  # also the number of the mask
    for k, tokens in enumerate(runs):
        before = runs[k - 1] if k else [symbols] * len(tokens)
        names = []
        for i, token in enumerate(tokens):
            if frozen[row, i]:
                name = "prompt"
            elif token == symbols:
                ever = any(earlier[i] != symbols for earlier in runs[:k])
                name = "again" if ever else "noise"
            elif before[i] == symbols:
                name = "new"
            else:
                name = "kept" if token == before[i] else "changed"
            stays = token in (symbols, runs[-1][i])
            names.append(name if stays else f"{name} passing")
        yield names


def test_a_real_sampler_that_takes_tokens_back(browser, tmp_path):
    """Each step of each row: text, classes and numbers are those of the states."""
    batch, length, process = 3, 4, toys.absorbing()
    frozen = torch.zeros(batch, length, dtype=torch.bool)
    frozen[1, 2] = True
    prompt = Prompt(torch.ones(batch, length, dtype=torch.int64), frozen)
    trace, seen = Trace(process, frozen=frozen), []

    def on_step(told):
        seen.append(told)
        trace(told)

    sampler = GridSampler(ReMDM(Cap(0.5)), EvenGrid(), steps=14, corrector=Gibbs())
    samples = sampler(
        Oracle(toys.correlated_law(length=length), process),
        (batch, length),
        key=Key(0, torch.arange(batch)),
        prompt=prompt,
        on_step=on_step,
    )

    class Letters:
        eos_id = -1

        def decode(self, ids):
            return "".join("abc"[token] for token in ids)

    write_trace(tmp_path / "real.html", [trace], Letters())
    page = browser.open((tmp_path / "real.html").as_uri())
    assert seen[-1].state.tokens.equal(samples.tokens)
    met = set()
    for row in range(batch):
        for k, names in enumerate(expected(seen, row, frozen)):
            page.evaluate(f"location.hash = 'step={k + 1}&row={row}'")
            page.wait(f"step === {k + 1} && row === {row}")
            told, tokens = seen[k], seen[k].state.tokens[row].tolist()
            assert classes(page) == names
            assert texts(page) == ["abc"[t] if t < toys.SYMBOLS else "" for t in tokens]
            words = [word for name in names for word in name.split()]
            assert counts(page) == {name: words.count(name) for name in counts(page)}
            assert content(page, "status") == (
                f"step {k + 1} of {len(seen)} · {told.kind} · alpha {float(told.alpha[row]):.3g} · "
                f"network calls {int(told.calls[row])} · "
                f"noise {tokens.count(toys.SYMBOLS)} of {length} tokens"
            )
            met |= {*words, told.kind}
    everything = {"prompt", "noise", "new", "changed", "again", "kept", "passing"}
    assert met == everything | {"predict", "correct"}
    assert page.problems() == []
