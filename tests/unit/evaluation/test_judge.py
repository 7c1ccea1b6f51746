"""The judge: the likelihood of whole texts, whatever batch they sit in, and nothing cut."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from dlm.errors import UserError
from dlm.evaluation.judge import Judge
from tests.unit.evaluation import tiny_judge

TEXTS = ["He was, of course, late.", "no", "", "a line\nand one more", "e"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("judge")
    return tiny_judge.write(path, context=40, bos_token=tiny_judge.BOS, eos_token=tiny_judge.EOS)


def by_hand(folder, text, first):
    """-log p of each character after those before it, one call of the model a character."""
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    words = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    ids, nats = [words[first]], 0.0
    for character in text:
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        nats -= log_probs[words[character]].item()
        ids.append(words[character])
    return nats


def test_nats_are_those_of_the_model_from_the_first_token_on(folder):
    judge = Judge(folder)
    scores = judge.score(TEXTS)
    assert judge.first == tiny_judge.BOS
    for text, nats in zip(TEXTS, scores.nats.tolist(), strict=True):
        assert nats == pytest.approx(by_hand(folder, text, tiny_judge.BOS), abs=1e-4)
    assert scores.tokens.tolist() == scores.bytes.tolist() == [len(text) for text in TEXTS]


def test_a_score_does_not_depend_on_the_batch(folder):
    judge = Judge(folder)
    together = judge.score(TEXTS, batch_size=5).nats
    for size in (1, 2):
        torch.testing.assert_close(judge.score(TEXTS, size).nats, together, rtol=1e-5, atol=1e-5)
    again = judge.score(TEXTS[::-1]).nats.flip(0)
    torch.testing.assert_close(again, together, rtol=1e-5, atol=1e-5)


def test_bytes_are_those_of_utf8(folder):
    assert Judge(folder).score(["\u00e9t\u00e9"]).bytes.tolist() == [5]


def test_no_text_is_cut(folder):
    judge = Judge(folder)
    assert judge.context == 40
    assert judge.score(["a" * 39]).tokens.tolist() == [39]
    with pytest.raises(UserError, match="a text has 41 tokens of the judge.* 40 at most"):
        judge.score(["short", "a" * 40])


def test_words_like_special_tokens_are_characters(folder):
    text = f"a{tiny_judge.EOS}b"
    scores = Judge(folder).score([text])
    assert scores.tokens.item() == len(text)
    assert scores.nats.item() == pytest.approx(by_hand(folder, text, tiny_judge.BOS), abs=1e-4)


def test_eos_stands_in_for_a_missing_bos(tmp_path):
    folder = tiny_judge.write(tmp_path, eos_token=tiny_judge.EOS)
    judge = Judge(folder)
    assert judge.first == tiny_judge.EOS
    nats = judge.score(["no"]).nats.item()
    assert nats == pytest.approx(by_hand(folder, "no", tiny_judge.EOS), abs=1e-4)


def test_a_judge_without_either_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither BOS nor EOS"):
        Judge(tiny_judge.write(tmp_path))


def test_no_texts_are_no_scores(folder):
    assert [part.tolist() for part in Judge(folder).score([])] == [[], [], []]


def test_what_is_no_judge_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        Judge(tmp_path / "nothing")
    with pytest.raises(UserError, match="no causal language model"):
        Judge(tmp_path)


def test_code_of_the_folder_is_not_run(tmp_path):
    folder = tiny_judge.write(tmp_path, bos_token=tiny_judge.BOS)
    (folder / "code.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C"}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UserError, match="no causal language model"):
        Judge(folder)
