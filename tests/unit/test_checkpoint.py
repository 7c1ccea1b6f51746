"""Checkpoints: what goes in comes out; what is damaged, foreign or hostile is refused."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

import dlm.checkpoint
from dlm.checkpoint import Loaded, export, load, payload, shipped, weights_hash
from dlm.data import Bpe, Char, TextFiles
from dlm.errors import UserError
from dlm.spec import build

LENGTH = 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("abc def\n\nfed cba\n")
    return Char().load(TextFiles(str(path)), mask=True)


@pytest.fixture
def spec(tokenizer):
    process = {
        "_target_": "dlm.processes.Absorbing",
        "num_states": tokenizer.size,
        "mask_id": tokenizer.mask_id,
        "schedule": {"_target_": "dlm.schedules.Linear", "alpha_min": 0.0},
    }
    backbone = {
        "_target_": "dlm.networks.DiT",
        "num_states": tokenizer.size,
        "length": LENGTH,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "time_conditioning": False,
        "tied": True,
    }
    return {
        "_target_": "dlm.Denoiser",
        "backbone": backbone,
        "process": process,
        "parameterization": {"_target_": "dlm.parameterizations.Denoising"},
        "time_conditioning": False,
    }


@pytest.fixture
def content(spec, tokenizer):
    """What Lightning would save."""
    torch.manual_seed(0)
    denoiser = build(spec)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter)
    state = {f"denoiser.{name}": tensor for name, tensor in denoiser.state_dict().items()}
    meta = {"length": LENGTH, "draws": None, "data": {"path": Path("x")}, "betas": (0.9, 0.95)}
    return {
        "state_dict": state,
        "dlm": payload(spec, tokenizer, {k: v for k, v in meta.items() if k != "data"}),
        "optimizer_states": [{"step": torch.tensor(3)}],
    }


@pytest.fixture
def save(tmp_path):
    def write(content):
        path = tmp_path / "model.ckpt"
        torch.save(content, path)
        return path

    return write


@pytest.fixture
def folder(content, save, tmp_path):
    export(save(content), tmp_path / "model")
    return tmp_path / "model"


def states(denoiser):
    return {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# What works


def test_a_ckpt_gives_the_model_its_tokenizer_and_its_meta(content, save, spec, tokenizer):
    loaded = load(save(content))
    expected = {k.removeprefix("denoiser."): v for k, v in content["state_dict"].items()}
    assert same(states(loaded.denoiser), expected)
    assert loaded.tokenizer.to_json() == tokenizer.to_json()
    assert loaded.meta["length"] == LENGTH
    assert loaded.meta["betas"] == [0.9, 0.95]
    assert loaded.meta["spec"] == spec
    assert loaded.meta["version"] == dlm.__version__
    assert not loaded.denoiser.training


def test_a_payload_is_plain_values(content):
    assert json.loads(json.dumps(content["dlm"])) == content["dlm"]


def test_only_entries_of_the_denoiser_are_weights(content, save):
    content["state_dict"]["metric.total"] = torch.zeros(3)
    assert "metric.total" not in load(save(content)).denoiser.state_dict()


def test_export_and_load_give_the_same_model(content, save, folder):
    before, after = load(save(content)), load(folder)
    assert same(states(before.denoiser), states(after.denoiser))
    assert before.meta == after.meta
    assert before.tokenizer.to_json() == after.tokenizer.to_json()
    assert weights_hash(before.denoiser) == weights_hash(after.denoiser)


def test_export_takes_a_loaded_model_and_replaces_an_earlier_export(content, save, folder):
    loaded = load(save(content))
    with torch.no_grad():
        loaded.denoiser.backbone.head.weight.add_(1)
    export(loaded, folder)
    assert same(states(load(folder).denoiser), states(loaded.denoiser))


def test_tied_weights_are_stored_once(content, save, tmp_path, monkeypatch):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(3, 3, bias=False)
            self.second = torch.nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

    module = Tied()
    stored = dlm.checkpoint._storable(module.state_dict(), torch.float32)
    assert list(stored) == ["first.weight"]
    other = Tied()
    dlm.checkpoint._load_weights(other, stored, tmp_path)
    assert torch.equal(other.second.weight, module.first.weight)


def test_bf16_is_loaded_as_float32(content, save, tmp_path):
    export(save(content), tmp_path / "half", dtype=torch.bfloat16)
    full, half = load(save(content)), load(tmp_path / "half")
    for name, tensor in half.denoiser.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, full.denoiser.state_dict()[name].bfloat16().float())


def test_the_hash_names_the_weights(content, save):
    loaded = load(save(content))
    before = weights_hash(loaded.denoiser)
    assert len(before) == 16
    with torch.no_grad():
        loaded.denoiser.backbone.head.weight[0, 0] += 1
    assert weights_hash(loaded.denoiser) != before


def test_shipped_models_load_by_name(content, save, tmp_path, monkeypatch):
    export(save(content), tmp_path / "assets" / "jane")
    monkeypatch.setattr(dlm.checkpoint, "_ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jane").mkdir()  # a folder of that name without a model is not in the way
    assert shipped() == ["jane"]
    assert isinstance(load("jane"), Loaded)
    with pytest.raises(UserError, match="the shipped ones are: jane"):
        load("emma")


def test_what_the_package_ships_loads():
    for name in shipped():
        assert load(name).tokenizer.size > 0


# What is refused


def refusal(path, **settings):
    with pytest.raises(UserError) as caught:
        load(path, **settings)
    return str(caught.value)


class Bomb:
    """A pickle that would touch a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_not_executed(content, tmp_path, zipped):
    mark, path = tmp_path / "mark", tmp_path / "model.ckpt"
    torch.save({**content, "bomb": Bomb(mark)}, path, _use_new_zipfile_serialization=zipped)
    assert "nothing in it was executed" in refusal(path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    refusal(path)
    assert not mark.exists()


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_a_sentence(content, save, part):
    path = save(content)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    sentence = refusal(path)
    assert "truncated" in sentence or "damaged" in sentence


def test_damaged_bytes_never_escape_as_another_error(content, save):
    path = save(content)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("model/data.pkl").header_offset + 64
    for offset in range(start, start + 400, 7):
        broken = bytearray(data)
        broken[offset] ^= 0xFF
        path.write_bytes(broken)
        try:
            load(path)
        except UserError:
            continue


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04", b"\x80\x02.", b"\x00" * 100])
def test_other_files_are_not_checkpoints(tmp_path, data):
    path = tmp_path / "model.ckpt"
    path.write_bytes(data)
    assert str(path) in refusal(path)


@pytest.mark.parametrize("value", [3, [1, 2], {"state_dict": {}}, {"dlm": 3}, torch.zeros(2)])
def test_other_contents_are_not_checkpoints(save, value):
    sentence = refusal(save(value))
    assert "checkpoint" in sentence


def test_another_format_is_refused(content, save):
    content["dlm"]["format"] = 2
    assert "format 2" in refusal(save(content))


@pytest.mark.parametrize("key", ["spec", "tokenizer", "meta"])
def test_a_missing_part_is_refused(content, save, key):
    del content["dlm"][key]
    assert "missing" in refusal(save(content))


@pytest.mark.parametrize(
    "target",
    ["os.system", "posix.system", "dlm.spec.importlib.import_module", "dlm.errors.UserError"],
)
def test_a_foreign_spec_is_refused(content, save, folder, target):
    content["dlm"]["spec"]["backbone"] = {"_target_": target, "command": "true"}
    assert "was refused" in refusal(save(content))
    (folder / "spec.json").write_text(json.dumps(content["dlm"]["spec"]))
    assert "was refused" in refusal(folder)


def test_a_foreign_package_is_not_imported(content, save, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\nclass Net: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    content["dlm"]["spec"]["backbone"] = {"_target_": "evil.Net"}
    assert "trust=[evil]" in refusal(save(content))
    assert not (tmp_path / "mark").exists()
    refusal(save(content), trust=["evil"])  # trusted, imported, and no network
    assert (tmp_path / "mark").exists()


def test_a_spec_of_something_else_is_refused(content, save):
    content["dlm"]["spec"] = content["dlm"]["spec"]["process"]
    assert "does not describe a denoiser" in refusal(save(content))


@pytest.mark.parametrize("depth", [700, 100_000])
def test_a_spec_nested_too_deeply_is_refused(folder, depth):
    (folder / "spec.json").write_text('{"a":' * depth + "1" + "}" * depth)
    assert str(folder) in refusal(folder)


def test_parts_of_ours_in_the_wrong_place_are_refused(content, save):
    spec = content["dlm"]["spec"]
    layer = {"_target_": "dlm.networks.layers.GELU", "width": 4, "ratio": 2.0}
    content["dlm"]["spec"] = {**spec, "backbone": layer}
    assert "cannot be built" in refusal(save(content))
    content["dlm"]["spec"] = {**spec, "process": spec["parameterization"]}
    assert "process must be Process" in refusal(save(content))


def test_a_misspelt_argument_of_the_spec_is_named(content, save):
    content["dlm"]["spec"]["backbone"]["widht"] = 3
    assert "did you mean 'width'" in refusal(save(content))


def test_a_tokenizer_of_another_size_is_refused(content, save, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text("hello world\n\nbye\n")
    other = Bpe(vocab_size=300).load(TextFiles(str(text)), mask=True)
    content["dlm"]["tokenizer"] = other.to_json()
    sentence = refusal(save(content))
    assert "another tokenizer" in sentence
    assert str(other.size) in sentence


def test_another_tokenizer_of_the_same_size_is_refused(content, save, folder):
    swapped = content["dlm"]["tokenizer"].replace('"a"', '"z"')
    assert swapped != content["dlm"]["tokenizer"]
    content["dlm"]["tokenizer"] = swapped
    assert "another tokenizer" in refusal(save(content))
    (folder / "tokenizer" / "tokenizer.json").write_text(swapped)
    assert "another tokenizer" in refusal(folder)


def test_a_damaged_tokenizer_is_refused(content, save):
    content["dlm"]["tokenizer"] = "{}"
    assert "tokenizer" in refusal(save(content))


def test_missing_extra_and_misshapen_weights_are_refused(content, save):
    whole = dict(content["state_dict"])
    name = next(iter(whole))
    content["state_dict"] = {k: v for k, v in whole.items() if k != name}
    sentence = refusal(save(content))
    assert f"{name.removeprefix('denoiser.')!r} is missing" in sentence
    content["state_dict"] = {**whole, "denoiser.extra": torch.zeros(1)}
    assert "'extra' is not part of it" in refusal(save(content))
    content["state_dict"] = {**whole, name: torch.zeros(3)}
    assert "must have shape" in refusal(save(content))
    content["state_dict"] = {**whole, name: "text"}
    assert "must have shape" in refusal(save(content))


@pytest.mark.parametrize(
    "name", ["meta.json", "model.safetensors", "tokenizer/tokenizer.json", "spec.json"]
)
def test_a_folder_that_is_not_complete_is_refused(folder, name):
    (folder / name).unlink()
    sentence = refusal(folder)
    assert Path(name).name in sentence


@pytest.mark.parametrize("name", ["meta.json", "model.safetensors", "spec.json"])
def test_a_damaged_folder_is_refused(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    assert "damaged" in refusal(folder)


def test_a_run_is_pointed_to_its_best_checkpoint(content, save, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    save(content).rename(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert "checkpoints/best.ckpt" in refusal(tmp_path / "run")
    assert "holds no checkpoint" in refusal(tmp_path)
