"""Records of samples: complete, repeatable, written whole or not at all."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlm.evaluation import record_samples, write_records
from dlm.evaluation.generation import Origin, TextStream
from dlm.random import Key
from dlm.samplers import Samples


class Letters:
    def decode(self, tokens):
        return "".join(chr(97 + token) for token in tokens)


def test_a_record_tells_how_to_make_the_sample_again(tmp_path):
    samples = Samples(torch.tensor([[0, 1, 9], [2, 3, 4]]), torch.tensor([4, 3]))
    key = Key(7, torch.tensor([10, 11]))
    records = record_samples(
        samples,
        key,
        Letters(),
        origins=[Origin(), Origin("é", "Emma", 5)],
        sampler={"steps": 4},
        checkpoint="austen",
        lengths=torch.tensor([2, 3]),
        guidance={"scale": 2.0},
        allow="[a-z]",
    )
    write_records(tmp_path / "deep" / "out.jsonl", records)
    lines = (tmp_path / "deep" / "out.jsonl").read_text(encoding="utf-8").splitlines()
    short = json.loads(lines[0])
    assert (short["text"], short["tokens"], short["length"]) == ("ab", [0, 1], 2)
    assert (short["prompt"], short["condition"], short["line"]) == (None, None, None)
    assert json.loads(lines[1]) == {
        "text": "cde",
        "tokens": [2, 3, 4],
        "length": 3,
        "prompt": "é",
        "line": 5,
        "seed": 7,
        "row": 11,
        "calls": 3,
        "sampler": {"steps": 4},
        "checkpoint": "austen",
        "condition": "Emma",
        "guidance": {"scale": 2.0},
        "allow": "[a-z]",
    }
    assert "é" in lines[1]


class Bytes:
    """A byte-level tokenizer; 256 is EOS, a line break between texts."""

    def decode(self, tokens):
        documents = [[]]
        for token in tokens:
            documents.append([]) if token == 256 else documents[-1].append(token)
        texts = [bytes(document).decode(errors="replace") for document in documents]
        return "\n".join(text for text in texts if text)


@given(st.lists(st.integers(0, 256)), st.integers(1, 5))
def test_streamed_parts_make_the_text(tokens, size):
    stream = TextStream(Bytes())
    parts = [stream.push(tokens[i : i + size]) for i in range(0, len(tokens), size)]
    assert "".join([*parts, stream.end()]) == Bytes().decode(tokens)


def test_half_a_character_is_held_back():
    stream = TextStream(Bytes())
    letters = list("né".encode())
    assert [stream.push(letters[:2]), stream.push(letters[2:]), stream.end()] == ["n", "é", ""]
    assert [stream.push(letters[1:2]), stream.end()] == ["", "\ufffd"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old\n")
    with pytest.raises(ValueError, match="JSON"):
        write_records(path, [{"a": 1}, {"a": float("nan")}])
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
