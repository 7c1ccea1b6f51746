"""`dlm export`: the folder is the same model."""

import json

import pytest
import torch

from dlm.checkpoint import load


def test_the_folder_is_the_same_model(dlm, checkpoint, tmp_path):
    folder = tmp_path / "it's a [model]"
    assert dlm("export", f"checkpoint={checkpoint}", f"output={folder}").code == 0
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"spec.json", "meta.json", "model.safetensors", "tokenizer/tokenizer.json"}
    before, after = load(checkpoint), load(folder)
    assert before.meta == after.meta
    assert before.tokenizer.to_json() == after.tokenizer.to_json()
    state = after.denoiser.state_dict()
    assert all(torch.equal(state[k], v) for k, v in before.denoiser.state_dict().items())
    outputs = []
    for model in (checkpoint, folder):
        output = tmp_path / "likelihood.json"
        assert dlm("evaluate", f"checkpoint={model}", f"output={output}").code == 0
        outputs.append(json.loads(output.read_text()))
    assert outputs[0] == outputs[1]


def test_bf16_halves_the_weights_and_loads_as_float32(dlm, checkpoint, tmp_path):
    sizes = {}
    for dtype in ("float32", "bf16"):
        folder = tmp_path / dtype
        command = ["export", f"checkpoint={checkpoint}", f"output={folder}", f"dtype={dtype}"]
        assert dlm(*command).code == 0
        sizes[dtype] = (folder / "model.safetensors").stat().st_size
    assert sizes["bf16"] < 0.7 * sizes["float32"]
    full, half = load(tmp_path / "float32"), load(tmp_path / "bf16")
    for name, tensor in half.denoiser.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, full.denoiser.state_dict()[name], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "output is required"),
        (["output={taken}"], "holds something else"),
        (["output={file}"], "holds something else"),
        (["output=/proc/no/such/place"], "cannot write"),
        (["output={new}", "dtype=int4"], "dtype must be 'float32' or 'bf16', got 'int4'"),
    ],
)
def test_mistakes_are_sentences(refused, checkpoint, tmp_path, arguments, sentence):
    places = {name: str(tmp_path / name) for name in ("taken", "file", "new")}
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("my only copy")
    (tmp_path / "file").write_text("text")
    given = [argument.format(**places) for argument in arguments]
    assert sentence in refused("export", f"checkpoint={checkpoint}", *given)
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "my only copy"
