"""Documents with classes: rows of one class each, ids that stand for names, batches, the cache."""

import json
import pickle

import pytest

from dlm.data import Austen, Char, Document, Pad, TextFiles, Wrap, batches, class_names, prepare
from dlm.errors import UserError

TEXTS = [("aaaa", "x"), ("bbb", "y"), ("aa", "x"), ("b", "y"), ("a", "x"), ("cc", "z")]
PACKINGS = [Wrap(), Document(), Pad()]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": t, "kind": k}) + "\n" for t, k in TEXTS))
    return TextFiles(str(path), label="kind", validation_fraction=0)


@pytest.fixture
def char(source):
    return Char().load(source, mask=True)


def rows(blocks, tokenizer):
    """Class and text of every row; EOS is a point."""
    found = []
    for i in range(len(blocks)):
        row = blocks[i]
        tokens = row.tokens[row.valid].tolist()
        text = "".join("." if t == tokenizer.eos_id else tokenizer.decode([t]) for t in tokens)
        found.append((blocks.classes[row.condition], text))
    return found


def test_wrap_joins_documents_of_one_class_only(source, char):
    expected = [("x", "aaaa."), ("x", "aa.a."), ("y", "bbb.b"), ("y", "."), ("z", "cc.")]
    assert rows(prepare(source, "train", char, Wrap(), 5), char) == expected
    documents = prepare(source, "train", char, Document(), 5)
    assert rows(documents, char) == expected
    assert documents[1].documents.tolist() == [0, 0, 0, 1, 1]


def test_pad_keeps_one_document_a_row(source, char):
    assert rows(prepare(source, "train", char, Pad(), 9), char) == [
        (kind, f"{text}.") for text, kind in sorted(TEXTS, key=lambda pair: pair[1])
    ]


@pytest.mark.parametrize("packing", PACKINGS)
def test_counts_do_not_change(source, char, packing):
    plain = TextFiles(source.path, validation_fraction=0)
    with_classes, without = (prepare(s, "train", char, packing, 4) for s in (source, plain))
    assert with_classes.num_tokens == without.num_tokens
    assert with_classes.num_bytes == without.num_bytes
    assert with_classes.num_documents == without.num_documents
    assert {without[i].condition for i in range(len(without))} == {-1}


def test_the_cache_is_keyed_by_the_label(source, char, own_cache):
    prepare(source, "train", char, Wrap(), 5)
    prepare(TextFiles(source.path, validation_fraction=0), "train", char, Wrap(), 5)
    by_text = TextFiles(source.path, validation_fraction=0, label="text")
    assert prepare(by_text, "train", char, Wrap(), 5).classes == sorted(t for t, _ in TEXTS)
    assert len(list((own_cache / "tokens").iterdir())) == 3


def test_batches_carry_the_classes(source, char):
    blocks = prepare(source, "train", char, Pad(), 9)
    found = [batch.condition.tolist() for batch in batches(blocks, 4)]
    assert found == [[0, 0, 0, 1], [1, 2]]
    plain = prepare(TextFiles(source.path, validation_fraction=0), "train", char, Pad(), 9)
    assert next(iter(batches(plain, 4))).condition is None


def test_ids_are_those_of_the_model(source, char):
    mine = prepare(source, "train", char, Pad(), 9, classes=["z", "w", "y", "x"])
    own = prepare(source, "train", char, Pad(), 9)
    assert rows(mine, char) == rows(own, char)
    assert mine[0].condition == 3
    assert pickle.loads(pickle.dumps(mine))[0].condition == 3
    with pytest.raises(UserError, match="the model knows no class 'x'; choose from: y, z"):
        prepare(source, "train", char, Pad(), 9, classes=["y", "z"])


def test_names_come_from_the_training_split(source, char, tmp_path):
    assert class_names(source, char) == ["x", "y", "z"]
    assert class_names(TextFiles(source.path), char) == []
    only = tmp_path / "one.jsonl"
    only.write_text('{"text": "a", "kind": "x"}\n' * 3)
    with pytest.raises(UserError, match="data.label=kind has a single class, 'x'"):
        class_names(TextFiles(str(only), label="kind"), char)
    many = tmp_path / "many.jsonl"
    many.write_text("".join(f'{{"text": "a", "kind": {i}}}\n' for i in range(1001)))
    with pytest.raises(UserError, match="more than 1000 classes; is it the right field"):
        class_names(TextFiles(str(many), label="kind", validation_fraction=0), char)


def test_austen_is_labelled_by_novel():
    plain, labelled = Austen(), Austen(label="novel")
    pairs = list(labelled.labelled("all"))
    assert [text for text, _ in pairs] == list(plain.documents("all"))
    assert len({name for _, name in pairs}) == 6
    emma = [text for text, name in pairs if name == "Emma"]
    assert len(emma) == 55
    assert emma[0].startswith("Emma Woodhouse, handsome, clever, and rich")
    assert {name for _, name in labelled.labelled("validation")} == {name for _, name in pairs}
    with pytest.raises(UserError, match="must be novel or null, got 'book'"):
        Austen(label="book")
