import json
import logging
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest

from dlm.data import (
    Bpe,
    Char,
    Document,
    HubDataset,
    Pad,
    TextFiles,
    Wrap,
    batches,
    prepare,
)
from dlm.data import prepare as prepare_function
from dlm.data.detokenize import Lm1b
from dlm.errors import UserError

TEXTS = ["abcdé", "f", "ghijklmnop", "q , r"]


@pytest.fixture
def source(jsonl):
    return TextFiles(jsonl(TEXTS), validation_fraction=0)


@pytest.fixture
def char(source):
    return Char().load(source, mask=True)


def stream(source, tokenizer):
    """All tokens with their documents, the plain way."""
    pairs = [
        (i, n)
        for n, text in enumerate(source.documents("train"))
        for i in [*tokenizer.encode(source.detokenize(text)), tokenizer.eos_id]
    ]
    return [i for i, _ in pairs], [n for _, n in pairs]


def read(blocks):
    """Tokens and documents of the valid positions, after checking the padding."""
    tokens, documents = [], []
    for i in range(len(blocks)):
        row = blocks[i]
        n = int(row.valid.sum())
        assert row.valid.tolist() == [True] * n + [False] * (blocks.length - n)
        assert row.documents[n:].tolist() == [-1] * (blocks.length - n)
        assert len(set(row.tokens[n:].tolist())) <= 1
        tokens += row.tokens[:n].tolist()
        documents.append(row.documents[:n].tolist())
    return tokens, documents


@pytest.mark.parametrize("packing", [Wrap(), Pad(), Document()])
@pytest.mark.parametrize("length", [1, 4, 7, 100])
def test_every_token_stands_in_one_row(source, char, packing, length):
    blocks = prepare(source, "train", char, packing, length)
    tokens, owners = stream(source, char)
    found, documents = read(blocks)
    assert found == tokens
    assert blocks.num_tokens == len(tokens)
    assert blocks.num_bytes == sum(len(t.encode()) for t in TEXTS)
    assert blocks.num_documents == len(TEXTS)
    start = 0
    for row in documents:
        mine = owners[start : start + len(row)]
        if packing.separate:
            assert row == [n - mine[0] for n in mine]
        else:
            assert row == [0] * len(row)
        assert packing.joins or len(set(mine)) == 1
        start += len(row)


def test_padding_is_eos(source, char):
    row = prepare(source, "train", char, Pad(), 8)[1]
    assert row.tokens.tolist() == [*char.encode("f"), *[char.eos_id] * 7]


def test_bytes_are_those_before_the_detokenizer(jsonl, char):
    source = TextFiles(jsonl(TEXTS), validation_fraction=0, detokenizer=Lm1b())
    blocks = prepare(source, "train", char, Wrap(), 100)
    assert blocks.num_bytes == sum(len(t.encode()) for t in TEXTS)
    assert char.decode(read(blocks)[0]).endswith("q, r")


def test_the_cache_is_keyed_by_text_tokenizer_and_transform(jsonl, source, char, own_cache):
    def folders():
        return len(list((own_cache / "tokens").iterdir()))

    prepare(source, "train", char, Wrap(), 4)
    prepare(source, "train", char, Document(), 8)  # another packing reads the same tokens
    assert folders() == 1
    prepare(source, "train", Bpe(270).load(source, mask=True), Wrap(), 4)
    assert folders() == 2
    changed = TextFiles(jsonl(TEXTS), validation_fraction=0, detokenizer=Lm1b())
    prepare(changed, "train", char, Wrap(), 4)
    assert folders() == 3
    other = TextFiles(jsonl([*TEXTS, "s"]), validation_fraction=0)
    assert prepare(other, "train", char, Wrap(), 4).num_documents == 5
    assert folders() == 4


def test_a_second_call_reads_no_text(source, char, monkeypatch):
    first = prepare(source, "train", char, Wrap(), 4)
    monkeypatch.setattr(TextFiles, "documents", None)
    assert read(prepare(source, "train", char, Wrap(), 4)) == read(first)


def test_another_folder_can_be_named(source, char, tmp_path, own_cache):
    shutil.rmtree(own_cache)
    prepare(source, "train", char, Wrap(), 4, cache_dir=tmp_path / "mine")
    assert (tmp_path / "mine" / "tokens").is_dir()
    assert not own_cache.exists()


def test_small_vocabularies_take_two_bytes_a_token(source, char, own_cache):
    prepare(source, "train", char, Wrap(), 4)
    (folder,) = (own_cache / "tokens").iterdir()
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["dtype"] == "uint16"
    assert (folder / "tokens.bin").stat().st_size == 2 * meta["tokens"]


def test_a_failure_leaves_nothing_behind(tmp_path, char, own_cache):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "ok"}\n{"text": 1}\n')
    with pytest.raises(UserError, match=r"bad.jsonl, line 2"):
        prepare(TextFiles(str(path), validation_fraction=0), "train", char, Wrap(), 4)
    assert list((own_cache / "tokens").iterdir()) == []


def test_damaged_caches_are_refused(source, char, own_cache):
    prepare(source, "train", char, Wrap(), 4)
    (folder,) = (own_cache / "tokens").iterdir()
    with (folder / "tokens.bin").open("ab") as file:
        file.truncate(6)
    with pytest.raises(UserError, match="are damaged; delete that folder"):
        prepare(source, "train", char, Wrap(), 4)


def test_unknown_characters_are_warned_of_also_from_the_cache(jsonl, char, caplog):
    other = TextFiles(jsonl(["aZZ"], "b.jsonl"), validation_fraction=0)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            prepare(other, "train", char, Wrap(), 4)
        assert "2 of 4 tokens are unknown" in caplog.text


def test_mistakes_are_sentences(source, char):
    with pytest.raises(UserError, match="there is no split 'validation'"):
        prepare(source, "validation", char, Wrap(), 4)
    with pytest.raises(UserError, match="length must be at least 1, got 0"):
        prepare(source, "train", char, Wrap(), 0)


def test_a_split_without_text_is_a_sentence(tmp_path, char):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": ""}\n')
    source = HubDataset(str(tmp_path), splits={"train": "train", "validation": "train[1:]"})
    with pytest.raises(UserError, match="the split 'validation' holds no text"):
        prepare(source, "validation", char, Wrap(), 4)


def test_blocks_travel_to_other_processes(source, char):
    blocks = prepare(source, "train", char, Wrap(), 4)
    blocks[0]  # the open memory map does not travel
    text = pickle.dumps(blocks)
    assert len(text) < 1000
    assert read(pickle.loads(text)) == read(blocks)


def _prepare_once(barrier, results, path, folder, tokenizer):
    source = TextFiles(path, validation_fraction=0)
    barrier.wait(60)  # both find no cache and start to write
    blocks = prepare_function(source, "train", tokenizer, Wrap(), 64, cache_dir=folder)
    results.put((blocks.num_tokens, int(np.sum([blocks[i].tokens.sum() for i in range(9)]))))


def test_two_runs_may_write_at_once(tmp_path, jsonl, char, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    path = jsonl(["abcd efgh " * 50] * 200, "big.jsonl")
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (barrier, results, path, tmp_path / "both", char)
    runs = [context.Process(target=_prepare_once, args=arguments) for _ in range(2)]
    for run in runs:
        run.start()
    found = [results.get(timeout=120) for _ in runs]
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0]
    assert found[0] == found[1]
    assert len(list((tmp_path / "both" / "tokens").iterdir())) == 1  # nothing temporary is left


def test_batches_cover_the_split_once(source, char):
    blocks = prepare(source, "train", char, Document(), 4)
    seen = [int(i) for batch in batches(blocks, 3) for i in batch.rows]
    assert seen == list(range(len(blocks)))
