"""`dlm generate`: seeds, rows, prompts, infilling, records."""

import json

import pytest

from dlm.checkpoint import load, weights_hash


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
    records, out = generate("num=2", "seed=5", "sampler.temperature=0.5", "grid=cosine")
    loaded = load(checkpoint)
    for row, record in enumerate(records):
        assert record["row"] == row
        assert record["seed"] == 5
        assert record["prompt"] is None
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
        "infill=the [MASK*3] sat",
        "sampler.steps=4",
        f"output={output}",
    )
    assert result.code == 0, result.err
    text = json.loads(output.read_text())["text"]
    assert text.startswith("the ")
    assert text.endswith(" sat")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["checkpoint=no_such_model"], "there is no checkpoint 'no_such_model'"),
        (["num=0"], "num and batch_size must be at least 1"),
        (["num=two"], "num must be int, got 'two'"),
        (["length=17"], "length must be from 1 to 16"),
        (["length=0"], "length must be from 1 to 16"),
        (["prompt=the cat sat on a mat", "length=4"], "more than the length 4"),
        (["prompt=a", "infill=b [MASK]"], "without prompt and suffix"),
        (["sampler=first"], "there is no sampler=first"),
        (["sampler.steps=0"], "steps must be at least 1"),
        (["sampler.temperature=hot"], "sampler.temperature must be float, got 'hot'"),
        (["sampler.temprature=1"], "did you mean 'sampler.temperature'?"),
        (["device=tpu9"], "device 'tpu9' is not available"),
        (["output=/proc/no/such/place.jsonl"], "cannot write"),
        (["process=uniform"], "there is no key 'process'"),
    ],
)
def test_mistakes_are_sentences(refused, checkpoint, arguments, sentence):
    assert sentence in refused("generate", f"checkpoint={checkpoint}", "device=cpu", *arguments)
