import json

import datasets
import pytest

from dlm.data import HubDataset
from dlm.errors import UserError


@pytest.fixture(autouse=True)
def own_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    """A local data set of 50 rows in two files; every seventh row is empty."""
    inside = tmp_path / "set"
    inside.mkdir()
    for part in range(2):
        rows = [f"document {part} {i}" if i % 7 else "" for i in range(25)]
        lines = [json.dumps({"text": text, "n": 1}) for text in rows]
        (inside / f"train-{part}.jsonl").write_text("\n".join(lines))
    return str(inside)


def test_the_last_part_of_train_is_validation_where_there_is_none(folder):
    source = HubDataset(folder, validation_fraction=0.1)
    assert source.splits == ("train", "validation", "all")
    validation = list(source.documents("validation"))
    assert validation == [f"document 1 {i}" for i in (20, 22, 23, 24)]
    assert list(source.documents("train")) + validation == list(source.documents("all"))
    assert len(list(source.documents("all"))) == 50 - 8


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_can_be_slices(folder, streaming):
    splits = {"train": "train[10:]", "validation": "train[:10]", "test": "train[:10]"}
    source = HubDataset(folder, splits=splits, streaming=streaming)
    assert next(iter(source.documents("validation"))) == "document 0 1"
    assert len(list(source.documents("validation"))) == 8
    assert len(list(source.documents("train"))) == 34
    assert len(list(source.documents("all"))) == 42  # the doubled slice counts once


def test_files_inside_and_usual_names(tmp_path, folder):
    files = {"train": "train-0.jsonl", "valid": "train-1.jsonl"}
    source = HubDataset(folder, data_files=files)
    assert source.splits == ("train", "validation", "all")
    assert next(iter(source.documents("validation"))) == "document 1 1"


def test_saved_data_sets_are_read(tmp_path):
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"]})
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "many"))
    assert list(HubDataset(str(tmp_path / "one")).documents("train")) == ["a", "b"]
    assert HubDataset(str(tmp_path / "many")).splits == ("train", "validation", "test", "all")


@pytest.mark.parametrize("rows", ["train", "train[3:]", "train[3:40]"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_stream_goes_on_from_any_state(folder, streaming, rows):
    source = HubDataset(folder, splits={"train": rows}, streaming=streaming)
    whole = list(source.stream("train", None))
    assert [text for text, _ in whole] == list(source.documents("train"))
    for i in range(0, len(whole), 5):
        state = json.loads(json.dumps(whole[i][1]))  # plain values only
        rest = [text for text, _ in source.stream("train", state)]
        assert rest == [text for text, _ in whole[i:]]
    assert [t for t, _ in source.stream("train", None)] == [t for t, _ in whole]


def test_fingerprints_follow_settings_and_contents(tmp_path, folder):
    def prints(**settings):
        return HubDataset(folder, **settings).fingerprint("train")

    assert prints() == prints()
    assert len({prints(), prints(field="n"), prints(splits={"train": "train[1:]"})}) == 3
    before = prints()
    (tmp_path / "set" / "train-0.jsonl").write_text('{"text": "other", "n": 1}')
    assert prints() != before


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"field": "txt"}, "has no field 'txt' .there: text, n."),
        ({"field": "n"}, "field 'n' is int, not text"),
        ({"splits": {"train": "trian"}}, "has no split 'trian'; did you mean 'train'"),
        ({"splits": {"train": "train[5%:]"}}, "is not a split; write train"),
        ({"splits": {"trian": "train"}}, "data.splits.trian: did you mean 'train'"),
        ({"splits": {"validation": "train"}}, "there is no split 'train'"),
        ({"splits": {"train": "train[-5:]"}, "streaming": True}, "counts from the end"),
    ],
)
def test_mistakes_are_sentences(folder, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        list(HubDataset(folder, **settings).documents("train"))


def test_what_cannot_be_loaded_is_a_sentence():
    with pytest.raises(UserError, match="'no/such' could not be loaded: .* check data.name"):
        list(HubDataset("no/such").documents("train"))
