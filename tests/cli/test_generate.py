"""`dlm generate`: seeds, rows, prompts, infilling, constraints, blocks, streaming, records."""

import io
import json
import re

import pytest
import torch
from rich.console import Console

from dlm.checkpoint import load, weights_hash
from dlm.cli.common import say
from dlm.cli.stream import BlockPrinter
from dlm.samplers.blocks import Block, BlockSampler
from dlm.spec import build


@pytest.fixture
def generate(dlm, checkpoint, tmp_path):
    def run(*arguments):
        output = tmp_path / "texts.jsonl"
        fixed = (f"checkpoint={checkpoint}", "device=cpu", "sampler.steps=6", f"output={output}")
        result = dlm("generate", *fixed, *arguments)
        assert result.code == 0, result.err
        return [json.loads(line) for line in output.read_text().splitlines()], result.out

    return run


def test_records_say_how_to_make_the_text_again(generate, checkpoint):
    settings = ("sampler=ancestral", "sampler.temperature=0.5", "grid=cosine")
    records, out = generate("num=2", "seed=5", *settings)
    loaded = load(checkpoint)
    for row, record in enumerate(records):
        assert record["row"] == row
        assert record["seed"] == 5
        assert record["prompt"] is record["line"] is record["allow"] is None
        assert record["length"] == loaded.meta["length"]
        assert 1 <= record["calls"] <= 6
        assert len(record["tokens"]) == loaded.meta["length"]
        assert record["text"] == loaded.tokenizer.decode(record["tokens"])
        assert loaded.tokenizer.mask_id not in record["tokens"]
        assert record["checkpoint"] == weights_hash(loaded.denoiser)
        assert record["sampler"]["temperature"] == 0.5
        assert record["sampler"]["grid"] == {"_target_": "dlm.samplers.CosineGrid"}
        assert record["text"] in out


def test_a_seed_repeats_and_another_does_not(generate):
    first, _ = generate("num=3", "seed=1")
    again, _ = generate("num=3", "seed=1")
    other, _ = generate("num=3", "seed=2")
    assert first == again
    assert [r["tokens"] for r in first] != [r["tokens"] for r in other]
    assert first[0]["tokens"] != first[1]["tokens"]


def test_neither_num_nor_batch_size_changes_a_text(generate):
    four, _ = generate("num=4")
    two, _ = generate("num=2")
    one_by_one, _ = generate("num=4", "batch_size=1")
    assert four[:2] == two
    assert four == one_by_one


def test_prompt_and_suffix_are_kept(generate):
    records, out = generate("num=2", "prompt=the cat", "suffix=a mat")
    for record in records:
        assert record["text"].startswith("the cat")
        assert record["text"].endswith("a mat")
        assert record["text"] in out
        assert record["prompt"] == "the cat ... a mat"
    assert generate("prompt=the cat")[0][0]["prompt"] == "the cat"


def test_infill_keeps_what_is_given(generate):
    records, _ = generate("num=3", "infill=the [MASK*3] sat")
    for record in records:
        assert record["text"].startswith("the ")
        assert record["text"].endswith(" sat")
        assert len(record["tokens"]) == len("the ") + 3 + len(" sat")
    longer, _ = generate("infill=the [MASK]at", "length=12")
    assert len(longer[0]["tokens"]) == 12


def test_length_and_single_step(generate):
    records, _ = generate("length=5", "sampler.steps=1")
    assert len(records[0]["tokens"]) == 5
    assert records[0]["calls"] == 1


def test_a_uniform_model_generates_and_keeps_its_prompt(dlm, tiny, tmp_path):
    folder = tmp_path / "run"
    assert (
        dlm("train", *tiny, "process=uniform", f"run_dir={folder}", "trainer.max_steps=1").code == 0
    )
    output = tmp_path / "texts.jsonl"
    result = dlm(
        "generate",
        f"checkpoint={folder / 'checkpoints' / 'last.ckpt'}",
        "infill=the [MASK*3] s[MASK:a|o]t",
        "allow=[aco]",
        "blocks.size=5",
        "sampler.steps=4",
        f"output={output}",
    )
    assert result.code == 0, result.err
    text = json.loads(output.read_text())["text"]
    assert re.fullmatch("the [aco]{3} s[ao]t", text)


@pytest.fixture
def prompts_file(tmp_path):
    def write(*lines):
        path = tmp_path / "prompts, and more=.jsonl"
        text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
        return f"prompts={path}"

    return write


LINES = (
    {"prompt": "the cat"},
    "",
    {"infill": "the [MASK*3] sat"},
    {"prompt": "a", "suffix": "mat", "length": 9},
    {},
)


def test_a_file_of_prompts_is_one_batch(generate, prompts_file):
    records, out = generate(prompts_file(*LINES), "num=2", "length=14")
    assert [record["line"] for record in records] == [1, 1, 3, 3, 4, 4, 5, 5]
    assert [record["length"] for record in records] == [14, 14, 14, 14, 9, 9, 14, 14]
    assert all(len(record["tokens"]) == record["length"] for record in records)
    assert [record["prompt"] for record in records[::2]] == [
        "the cat", "the [MASK*3] sat", "a ... mat", None,
    ]  # fmt: skip
    for record, start in zip(records[::2], ["the cat", "the ", "a", ""], strict=True):
        assert record["text"].startswith(start)
    assert records[4]["text"].endswith("mat")
    assert "--- line 4, text 1, " in out
    assert generate(prompts_file(*LINES), "num=2", "length=14", "batch_size=3")[0] == records


def test_a_line_is_a_function_of_itself_and_its_number(generate, prompts_file):
    records, _ = generate(prompts_file(*LINES), "num=2")
    assert [record["row"] for record in records[:4]] == [0, 1, 2 * 2**32, 2 * 2**32 + 1]
    alone, _ = generate("prompt=the cat", "num=2")
    assert [r["tokens"] for r in alone] == [r["tokens"] for r in records[:2]]
    third, _ = generate(prompts_file("", "", LINES[2]), "num=3")
    assert third[:2] == records[2:4]
    assert third[0]["length"] == len("the ") + 3 + len(" sat")
    marked, _ = generate(prompts_file("\ufeff" + json.dumps(LINES[0])), "num=2")
    assert marked == records[:2]
    twice, _ = generate(prompts_file({}, {}))
    assert twice[0]["tokens"] != twice[1]["tokens"]


def test_choices_are_kept_to(generate):
    records, _ = generate("num=12", "infill=th[MASK:e|a] [MASK]at", "sampler.temperature=3")
    assert {record["text"][:4] for record in records} == {"the ", "tha "}
    assert all(record["text"].endswith("at") for record in records)
    assert records[0]["prompt"] == "th[MASK:e|a] [MASK]at"
    narrowed, _ = generate("num=3", "infill=th[MASK:e|a]", "allow=[aeiou]")
    assert narrowed[0]["allow"] == "[aeiou]"
    one, _ = generate("num=3", "infill=th[MASK:e|a] [MASK]", "allow=[b-z]")
    assert {record["text"][:4] for record in one} == {"the "}


def test_allow_holds_for_every_written_token(generate):
    records, _ = generate("num=4", "prompt=the cat", "allow=[aeiou]|x?")
    for record in records:
        assert re.fullmatch(r"the cat[aeiou\n]*", record["text"])  # EOS has the empty text
    assert records[0]["allow"] == "[aeiou]|x?"
    without_eos, _ = generate("num=4", "allow=[aeiou]")
    assert all(re.fullmatch("[aeiou]{16}", record["text"]) for record in without_eos)
    free, _ = generate("num=4", "prompt=the cat")
    assert [r["tokens"] for r in free] != [r["tokens"] for r in records]


BLOCKS = ("blocks.size=6", "length=40")


def test_blocks_write_what_the_network_could_not_take(generate, checkpoint):
    keys = ("num=3", *BLOCKS, "prompt=the cat", "suffix=a mat")
    records, _ = generate(*keys)
    for record in records:
        assert record["length"] == 40
        assert record["text"].startswith("the cat")
        assert record["text"].endswith("a mat")
        assert 6 < record["calls"] <= 6 * 7
        assert record["sampler"]["context"] == 16 - 6
    rebuilt = build(records[0]["sampler"], trust=("dlm",))
    assert isinstance(rebuilt, BlockSampler)
    assert (rebuilt.size, rebuilt.sampler.steps) == (6, 6)
    assert generate(*keys, "batch_size=2")[0] == records


def test_the_numbers_of_blocks_matter(generate):
    settings = ("num=2", *BLOCKS, "sampler.temperature=0.5")
    texts = [
        [record["text"] for record in generate(*settings, *more)[0]]
        for more in ([], ["blocks.size=5"], ["blocks.context=0"])
    ]
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]
    assert [text[:6] for text in texts[0]] == [text[:6] for text in texts[2]]
    short, long = generate("blocks.size=6")[0], generate("blocks.size=6", "length=22")[0]
    assert short[0]["length"] == 16
    assert long[0]["tokens"][:12] == short[0]["tokens"][:12]


def test_lines_of_a_file_may_need_different_numbers_of_blocks(generate, prompts_file):
    lines = ({"prompt": "the cat", "length": 7}, {"length": 30}, {"length": 19, "suffix": "mat"})
    records, _ = generate(prompts_file(*lines), "blocks.size=6")
    assert [record["length"] for record in records] == [7, 30, 19]
    assert records[0]["calls"] == 0  # all of it was given
    assert generate(prompts_file(*lines), "blocks.size=6", "batch_size=1")[0] == records


def test_streams_show_the_text(generate):
    records, out = generate(*BLOCKS, "stream=true")
    assert records == generate(*BLOCKS)[0]
    lines = out.split("\n--- text 0, ")
    assert lines[0].removeprefix("--- text 0\n") == records[0]["text"]
    assert lines[1].startswith(f"{records[0]['calls']} network calls\n")
    records, out = generate("num=2", *BLOCKS, "stream=true")
    for row, record in enumerate(records):
        parts = re.findall(rf"--- text {row}, tokens \d+ to \d+\n(.*?)\n(?=---)", out, re.DOTALL)
        assert len(parts) == 7
        assert "".join(parts) == record["text"]
    assert "--- text 1, tokens 36 to 39\n" in out


def test_the_printer_keeps_padding_and_half_characters_back():
    class Bytes:
        def decode(self, tokens):
            return bytes(tokens).decode(errors="replace")

    console = Console(file=io.StringIO())
    printer = BlockPrinter(console, Bytes(), ["one", "two"], [3, 5])
    letters = torch.tensor([list(b":a\xc3\0\0\0"), list(b":cat:\0")])
    for start in (0, 2, 4):
        printer(Block(start, letters[:, start : start + 2], torch.zeros(2)))
    shown = console.file.getvalue()
    assert shown == (
        "--- one, tokens 0 to 1\n:a\n--- two, tokens 0 to 1\n:c\n"
        "--- one, tokens 2 to 2\n\ufffd\n--- two, tokens 2 to 3\nat\n"
        "--- two, tokens 4 to 4\n:\n"
    )


def test_one_text_runs_on():
    class Letters:
        def decode(self, tokens):
            return "".join(map(chr, tokens))

    console = Console(file=io.StringIO())
    printer = BlockPrinter(console, Letters(), ["one"], [8])
    letters = torch.tensor([list(b":cat: [b]")])
    for start in (0, 5):
        printer(Block(start, letters[:, start : start + 5], torch.zeros(1)))
    assert console.file.getvalue() == "--- one\n:cat: [b\n"


def traced(page):
    """What a page holds: its data, and the tokens that the changes of each row lead to."""
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    data = json.loads(text[1])
    ends = []
    for row in data["rows"]:
        tokens = [None] * row["length"]
        for places, shown, *_ in row["changes"]:
            for place, token in zip(places, shown, strict=True):
                tokens[place] = token
        ends.append(tokens)
    return data, ends


@pytest.mark.parametrize("more", [(), ("blocks.size=5", "length=23")], ids=["whole", "blocks"])
def test_a_trace_leads_to_the_text(generate, tmp_path, more):
    page = tmp_path / "steps, and more=.html"
    keys = ("num=10", "batch_size=9", "prompt=the cat", "suffix=mat", "seed=3", *more)
    records, out = generate(*keys, f"trace={page}")
    data, ends = traced(page.read_text("utf-8"))
    assert ends == [record["tokens"] for record in records[:8]]
    assert [row["name"] for row in data["rows"]] == [f"text {n}" for n in range(8)]
    assert [row["calls"][-1] for row in data["rows"]] == [record["calls"] for record in records[:8]]
    assert (data["about"]["seed"], data["about"]["sampler"]) == (3, records[0]["sampler"])
    assert f"wrote {page}" in out
    assert generate(*keys)[0] == records


def test_a_trace_knows_the_length_of_each_line(generate, prompts_file, tmp_path):
    page = tmp_path / "steps.html"
    lines = ({"prompt": "the"}, {"length": 7, "suffix": "at"})
    records, _ = generate(prompts_file(*lines), f"trace={page}")
    data, ends = traced(page.read_text("utf-8"))
    assert ends == [record["tokens"] for record in records]
    assert [row["name"] for row in data["rows"]] == ["line 1, text 0", "line 2, text 0"]
    prompt = data["events"].index("prompt")
    places = [[], []]
    for row, found in zip(data["rows"], places, strict=True):
        positions, _, events, _ = row["changes"][0]
        found += [p for p, event in zip(positions, events, strict=True) if event == prompt]
    assert places == [[0, 1, 2], [5, 6]]


def test_the_screen_shows_text_as_it_is():
    console = Console(file=io.StringIO())
    say(console, "[bold]:cat: " + "x" * 200)
    assert console.file.getvalue() == "[bold]:cat: " + "x" * 200 + "\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["checkpoint=no_such_model"], "there is no checkpoint 'no_such_model'"),
        (["num=0"], "num and batch_size must be at least 1"),
        (["num=two"], "num must be int, got 'two'"),
        (["length=17"], "length must be from 1 to 16 for this model, got 17; add blocks.size=8"),
        (["prompt=the Émile"], "does not know part of 'the Émile'"),
        (["infill=the [MASK] É"], "does not know part of 'the [MASK] É'"),
        (["infill=the [MASK:cat|a]"], "the choice 'cat' is 3 tokens of this model, it must be one"),
        (["infill=the [MASK:a|]"], "the choice '' is 0 tokens"),
        (["infill=the [MASK:a|É]"], "does not know part of 'É'"),
        (["infill=[MASK:a|o]", "allow=c"], "no choice of [MASK:a|o] matches allow='c'"),
        (["prompt=\udcff"], "holds half a character"),
        (["allow=[a"], "allow='[a' is no regular expression: unterminated character set"),
        (["allow=cat"], "allow='cat' matches no token of this model"),
        (["allow=\\[MASK\\]"], "matches no token of this model"),
        (["prompts=/no/such/file.jsonl"], "cannot read prompts='/no/such/file.jsonl'"),
        (["prompts=x", "prompt=a", "suffix=b"], "write prompt and suffix into its lines"),
        (["blocks.size=0"], "blocks.size must be from 1 to 16 for this model, got 0"),
        (["blocks.size=17"], "blocks.size must be from 1 to 16 for this model, got 17"),
        (["blocks.context=3"], "blocks.context=3 needs blocks.size"),
        (["blocks.size=8", "blocks.context=9"], "blocks.context must be from 0 to 8"),
        (["blocks.size=8", "blocks.context=-1"], "blocks.context must be from 0 to 8"),
        (["blocks.size=two"], "blocks.size must be int or null, got 'two'"),
        (["blocks.sise=2"], "did you mean 'blocks.size'?"),
        (["stream=true"], "stream=true shows blocks as they are finished; add blocks.size=64"),
        (["length=0"], "length must be from 1 to 16"),
        (["prompt=the cat sat on a mat", "length=4"], "more than the length 4"),
        (["prompt=a", "infill=b [MASK]"], "without prompt and suffix"),
        (["sampler=first"], "there is no sampler=first"),
        (["sampler.steps=0"], "steps must be at least 1"),
        (["sampler.temperature=hot"], "sampler.temperature must be float, got 'hot'"),
        (["sampler.temprature=1"], "did you mean 'sampler.temperature'?"),
        (["device=tpu9"], "device 'tpu9' is not available"),
        (["output=/proc/no/such/place.jsonl"], "cannot write"),
        (["trace=/proc/no/such/place.html"], "cannot write"),
        (["process=uniform"], "there is no key 'process'"),
    ],
)
def test_mistakes_are_sentences(refused, checkpoint, arguments, sentence):
    assert sentence in refused("generate", f"checkpoint={checkpoint}", "device=cpu", *arguments)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "holds no line"),
        ([{}, "{"], "line 2 is no JSON"),
        (["[1]"], "line 1 must be a JSON object"),
        ([{"promt": "a"}], "line 1 has a key 'promt'; did you mean 'prompt'?"),
        ([{"line": 3}], "line 1 has a key 'line'"),
        ([{}, {"length": "9"}], "line 2: length must be int or null, got '9'"),
        ([{"prompt": "a", "infill": "b"}], "line 1: infill is a whole template"),
        (["", {"length": 17}], "line 2: length must be from 1 to 16"),
        ([{"prompt": "the cat", "length": 3}], "line 1: the given text has 7 tokens"),
        ([{"infill": "[MASK:cat]"}], "line 1: the choice 'cat' is 3 tokens"),
        ([{"condition": "Emma"}], "condition=Emma: this model has no classes"),
    ],
)
def test_mistakes_in_a_file_name_the_line(refused, checkpoint, prompts_file, lines, sentence):
    keys = (f"checkpoint={checkpoint}", "device=cpu", prompts_file(*lines))
    assert sentence in refused("generate", *keys)
