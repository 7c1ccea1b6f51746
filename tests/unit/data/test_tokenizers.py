import pickle

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from dlm.data import Bpe, Char, Pretrained, TextFiles, Tokenizer
from dlm.data import tokenizers as module
from dlm.errors import UserError

CORPUS = ["the cat sat on the mat", "the dog ate the cat's 123 hats", "naïve\nend"] * 4


@pytest.fixture
def source(jsonl):
    return TextFiles(jsonl(CORPUS), validation_fraction=0)


def byte_level() -> Tokenizer:
    """A byte-level BPE without merges: what is under test is ours, not the trainer."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, eos=None, mask_token=None, pad=None, mask=True)


BYTES = byte_level()


@given(st.text())
def test_any_text_comes_back_from_bytes(text):
    ids = BYTES.encode(text)
    assert BYTES.decode(ids) == text
    assert BYTES.decode([*ids, BYTES.eos_id]) == text
    assert max(ids, default=0) < BYTES.eos_id < BYTES.size


@pytest.mark.parametrize(
    "text", ["<|endoftext|>", "a <|endoftext|> [MASK] b", "0123 \r\n\t\u2028 漢字 é", " x ", ""]
)
def test_trained_bpe_takes_any_text_and_no_text_is_special(source, text):
    bpe = Bpe(300).load(source, mask=True)
    assert bpe.decode(bpe.encode(text)) == text
    assert not {bpe.eos_id, bpe.mask_id} & set(bpe.encode(text))
    assert bpe.encode_batch([text, "a"]) == [bpe.encode(text), bpe.encode("a")]


def test_the_mask_comes_on_top_and_only_where_it_is_needed(source):
    masked, plain = (Bpe(270).load(source, mask=m) for m in (True, False))
    assert (plain.size, plain.mask_id) == (270, None)
    assert (masked.size, masked.mask_id) == (271, 270)
    assert masked.encode("the cat") == plain.encode("the cat")
    assert masked.fingerprint != plain.fingerprint


def test_trained_tokenizers_are_cached_by_data_and_settings(source, jsonl, own_cache, monkeypatch):
    first = Bpe(270).load(source, mask=True)
    Bpe(280).load(source, mask=True)
    Bpe(270).load(TextFiles(jsonl(["other text"], "b.jsonl"), validation_fraction=0), mask=True)
    assert len(list((own_cache / "tokenizers").glob("*.json"))) == 3
    monkeypatch.setattr(TextFiles, "documents", None)  # a cached one reads no data
    assert Bpe(270).load(source, mask=True).fingerprint == first.fingerprint


def test_characters(source):
    char = Char().load(source, mask=True)
    assert char.size == len(set("".join(CORPUS))) + 3  # EOS, <unk>, MASK
    assert char.decode(char.encode("the\nhat")) == "the\nhat"
    assert char.decode(char.encode("thé")) == "th<unk>"
    assert char.unknown_id not in [*char.encode("the end"), char.eos_id, char.mask_id]
    assert len(char.encode("<unk>")) == 5  # five characters, not the state
    assert char.encode("Q") == [char.unknown_id]


def test_training_looks_at_no_more_than_it_should(jsonl):
    texts = ["a" * 1000, "b" * 1000, "c" * 1000]
    source = TextFiles(jsonl(texts), validation_fraction=0)
    assert Char(train_mb=0.001).load(source, mask=False).size == 2 + 2  # a and b fill 1 KiB


def test_a_vocabulary_without_bytes_is_refused():
    with pytest.raises(UserError, match="at least 257"):
        Bpe(100)


@pytest.fixture
def bert(tmp_path):
    """A WordPiece tokenizer with BERT's special tokens, also as whole words of a text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s"]
    backend = tokenizers.Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(words[:5])
    backend.enable_truncation(2)
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    return Pretrained(str(path))


def test_an_existing_mask_token_is_used(bert, source):
    found = bert.load(source, mask=True)
    assert (found.size, found.mask_id, found.eos_id, found.unknown_id) == (9, 4, 3, 1)
    assert found.encode("the cats sat") == [5, 6, 8, 7]
    assert found.encode("[MASK] [PAD] [SEP]") == [1, 1, 1]
    assert found.encode_template("the [MASK] sat") == ([5, 4, 7], [True, False, True])
    assert found.decode([5, 4, 7]) == "the [MASK] sat"


def test_without_a_mask_neither_mask_nor_padding_is_a_state(bert, source):
    found = bert.load(source, mask=False)
    assert (found.size, found.mask_id, found.eos_id, found.unknown_id) == (7, None, 2, 0)
    assert found.encode("the cats sat") == [3, 4, 6, 5]
    assert found.decode([3, 4, 6, 5, 2]) == "the cats sat"
    assert found.encode_template("the [MASK]") == ([3, 2], [True, False])


def test_templates():
    ids, frozen = BYTES.encode_template("ab[MASK]c[MASK*3][mask]")
    m, plain = BYTES.mask_id, BYTES.encode
    assert ids == [*plain("ab"), m, *plain("c"), m, m, m, *plain("[mask]")]
    assert [not f for f in frozen] == [i == m for i in ids]
    assert BYTES.decode(ids) == "ab[MASK]c[MASK][MASK][MASK][mask]"
    assert BYTES.encode_template("") == ([], [])


def test_eos_is_one_newline_between_texts():
    e = BYTES.eos_id
    ids = [e, *BYTES.encode("a"), e, e, *BYTES.encode("b"), e, e]
    assert BYTES.decode(ids) == "a\nb"
    with pytest.raises(ValueError, match="outside"):
        BYTES.decode([BYTES.size])


def test_json_holds_everything(source, bert):
    for tokenizer in (
        Bpe(270).load(source, mask=False),
        Char().load(source, mask=True),
        bert.load(source, mask=False),
        BYTES,
    ):
        for again in (
            Tokenizer.from_json(tokenizer.to_json()),
            pickle.loads(pickle.dumps(tokenizer)),
        ):
            assert again.fingerprint == tokenizer.fingerprint
            assert (again.size, again.eos_id, again.mask_id) == (
                tokenizer.size,
                tokenizer.eos_id,
                tokenizer.mask_id,
            )
            text = "the cat <|endoftext|> [MASK]"
            assert again.encode(text) == tokenizer.encode(text)
    with pytest.raises(UserError, match="not a tokenizer that dlm has saved"):
        Tokenizer.from_json('{"model": 1}')


def test_long_texts_are_encoded_in_pieces_without_a_trace(source, monkeypatch):
    bpe = Bpe(300).load(source, mask=True)
    text = " ".join(CORPUS) * 5
    whole = bpe.encode(text)
    monkeypatch.setattr(module, "_PIECE", 40)
    monkeypatch.setattr(module, "_GROUP", 100)
    assert len(list(module._pieces(text))) > 10
    assert bpe.encode(text) == whole
    solid = "x" * 500
    assert bpe.decode(bpe.encode(solid)) == solid


def test_wrong_paths_are_sentences(tmp_path, source):
    (tmp_path / "bad.json").write_text("{}")
    for path, sentence in (
        ("nowhere.json", "no tokenizer file 'nowhere.json'"),
        (str(tmp_path / "bad.json"), "not a file of the tokenizers library"),
        ("no-such-tokenizer", "'no-such-tokenizer' could not be loaded"),
    ):
        with pytest.raises(UserError, match=sentence):
            Pretrained(path).load(source, mask=True)


def test_a_transformers_folder_tells_its_roles(tmp_path, source):
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<p>", "<u>", "<m>", "<end>", "the", "cat"])}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<u>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<p>",
        unk_token="<u>",
        mask_token="<m>",
        eos_token="<end>",
    ).save_pretrained(tmp_path / "folder")
    found = Pretrained(str(tmp_path / "folder"))
    masked, plain = found.load(source, mask=True), found.load(source, mask=False)
    assert (masked.size, masked.mask_id, masked.eos_id) == (6, 2, 3)
    assert (plain.size, plain.mask_id, plain.eos_id) == (4, None, 1)
    assert plain.encode("the cat") == [2, 3]
    assert masked.decode([4, 2, 5]) == "the [MASK] cat"
