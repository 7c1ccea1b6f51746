"""`dlm evaluate`: the number of the training, from the checkpoint alone; other data; refusals."""

import json

import pytest

from dlm.checkpoint import load, weights_hash


@pytest.fixture
def evaluate(dlm, checkpoint, tmp_path):
    def run(*arguments, model=checkpoint):
        output = tmp_path / "likelihood.json"
        result = dlm(
            "evaluate", f"checkpoint={model}", "device=cpu", f"output={output}", *arguments
        )
        assert result.code == 0, result.err
        return json.loads(output.read_text()), result.out

    return run


def test_it_is_the_number_that_training_printed(evaluate, trained):
    summary = json.loads((trained / "summary.json").read_text())
    record, _ = evaluate()
    for key in ("nelbo", "nelbo_stderr", "ppl", "bits_per_byte"):
        assert record[key] == pytest.approx(summary[key], rel=1e-6)
    best, _ = evaluate(model=trained / "checkpoints" / "best.ckpt")
    assert best["nelbo"] == pytest.approx(summary["best_nelbo"], rel=1e-6)


def test_the_record_and_the_table_are_whole(evaluate, checkpoint):
    record, out = evaluate()
    keys = {
        "nelbo", "nelbo_stderr", "prior_kl", "reconstruction", "ppl", "ppl_low", "ppl_high",
        "bits_per_byte", "tokens", "draws", "seed", "split", "data", "checkpoint",
    }  # fmt: skip
    assert keys <= record.keys()
    assert record["draws"] == 8
    assert record["checkpoint"] == weights_hash(load(checkpoint).denoiser)
    assert record["ppl_low"] < record["ppl"] < record["ppl_high"]
    for words in ("nelbo", "95 %", "perplexity", "bits per byte", "tokens", "EOS"):
        assert words in out


def test_no_number_depends_on_the_batch(evaluate):
    assert evaluate("batch_size=1")[0]["nelbo"] == pytest.approx(evaluate()[0]["nelbo"], rel=1e-6)


def test_draws_and_seed_can_be_chosen(evaluate):
    one = evaluate("draws=1", "seed=3")[0]
    assert (one["draws"], one["seed"]) == (1, 3)
    assert one["nelbo"] != evaluate()[0]["nelbo"]
    assert one == evaluate("draws=1", "seed=3")[0]


def test_other_data_and_splits(evaluate, tmp_path):
    text = tmp_path / "it's, [other] text.txt"
    text.write_text("the cat sat\n\non a mat\n")
    record, _ = evaluate("data=text", f"data.path={text}", "split=all")
    assert record["split"] == "all"
    assert record["data"]["path"] == str(text)
    assert record["tokens"] == len("the cat sat") + len("on a mat") + 2
    assert evaluate("split=train")[0]["tokens"] > record["tokens"]


def test_the_bound_of_the_sampler(evaluate):
    record, out = evaluate("steps=4")
    assert record["steps"] == 4
    assert record["nelbo_steps"] > 0
    assert "bound of 4 steps" in out


def test_precision(evaluate):
    assert evaluate("precision=32")[0]["nelbo"] == pytest.approx(evaluate()[0]["nelbo"], rel=1e-9)
    half, _ = evaluate("precision=bf16-mixed")
    assert half["precision"] == "bf16-mixed"
    assert half["nelbo"] == pytest.approx(evaluate()[0]["nelbo"], rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["split=tset"], "split"),
        (["split=test"], "there is no split 'test'"),
        (["draws=0"], "draws"),
        (["steps=0"], "steps"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["precision=3"], "precision must be one of"),
        (["precision=16-mixed"], "needs a GPU"),
        (["data=text", "data.path=/no/such/file"], "/no/such/file"),
        (["data=txt"], "did you mean 'text'?"),
        (["tokenizer=char"], "there is no key 'tokenizer'"),
        (["seed=x"], "seed must be int"),
        (["output=/proc/no/such/place.json"], "cannot write"),
    ],
)
def test_mistakes_are_sentences(refused, checkpoint, arguments, sentence):
    assert sentence in refused("evaluate", f"checkpoint={checkpoint}", "device=cpu", *arguments)


def test_the_checkpoint_is_required(refused):
    assert "checkpoint is required" in refused("evaluate")
