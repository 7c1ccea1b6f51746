"""Classes from the data to the samples: train with labels, evaluate, generate, guide."""

import json
import random
import re
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from dlm.checkpoint import load
from dlm.cli import fit
from dlm.cli.help import configs_dir
from dlm.cli.main import main
from dlm.evaluation.profile import measure_profile

ALPHABETS = {"Low": "abc", "High": "xyz"}
SETTINGS = (
    "tokenizer=char",
    "packing=wrap",
    "length=12",
    "batch_size=32",
    "backbone.width=32",
    "backbone.depth=1",
    "backbone.heads=2",
    "trainer.accelerator=cpu",
    "trainer.val_check_interval=1000",
    "lr.warmup_steps=5",
    "optimizer.lr=0.01",
    "condition_dropout=0.3",
    "callbacks.ema=null",
    "sample=null",
)


@pytest.fixture(scope="module")
def labelled_file(tmp_path_factory):
    """Words of three letters; each class has an alphabet of its own."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("labelled") / "words.jsonl"
    names = [*ALPHABETS] * 60
    lines = [
        json.dumps({"text": "".join(draw.choice(ALPHABETS[name]) for _ in range(11)), "kind": name})
        for name in names
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module", params=["absorbing", "uniform"])
def model(request, tmp_path_factory, labelled_file):
    """A class-conditional model that has learned the alphabets."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    data = ("data=text", f"data.path={labelled_file}", "data.label=kind")
    more = (f"process={request.param}", f"run_dir={folder}", "trainer.max_steps=500")
    assert main(["train", *data, *SETTINGS, *more]) == 0
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture
def generate(dlm, model, tmp_path):
    def run(*arguments):
        output = tmp_path / "texts.jsonl"
        fixed = (f"checkpoint={model}", "device=cpu", "sampler.steps=12", f"output={output}")
        result = dlm("generate", *fixed, *arguments)
        assert result.code == 0, result.err
        return [json.loads(line) for line in output.read_text().splitlines()]

    return run


def share(records, letters):
    """How many of the letters of all texts are of these."""
    text = "".join(letter for record in records for letter in record["text"] if letter.isalpha())
    return sum(letter in letters for letter in text) / len(text)


def test_the_checkpoint_knows_the_classes(model):
    loaded = load(model)
    assert loaded.meta["classes"] == ["High", "Low"]
    assert loaded.denoiser.backbone.num_classes == 2


def test_samples_follow_the_class(generate):
    for name, letters in ALPHABETS.items():
        assert share(generate("num=8", f"condition={name}"), letters) > 0.9
    without = share(generate("num=16"), ALPHABETS["Low"])
    assert 0.1 < without < 0.9


def test_records_say_what_guided(generate):
    plain = generate("num=2", "condition=low")
    guided = generate("num=2", "condition=low", "guidance.scale=2")
    assert plain[0]["condition"] == "low"
    assert guided[0]["guidance"] == {
        "scale": 2.0,
        "drop": "condition",
        "classifier": None,
        "first_order": True,
    }
    assert all(record["calls"] % 2 == 0 for record in guided)
    assert max(record["calls"] for record in plain) <= 12
    assert [r["tokens"] for r in guided] != [r["tokens"] for r in plain]
    assert generate("num=2", "condition=low", "guidance.scale=1") == plain


def test_guidance_does_not_depend_on_the_batch(generate):
    settings = ("condition=High", "guidance.scale=2")
    four = generate("num=4", *settings)
    assert generate("num=4", "batch_size=1", *settings) == four


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    asked = ({"condition": "low"}, {"condition": "High", "length": 7}, {"condition": None})
    path.write_text("".join(json.dumps(line) + "\n" for line in asked))
    return f"prompts={path}"


def test_lines_of_a_file_name_their_classes(generate, lines):
    """Even letters would be half; how far above depends on the rounding of a machine."""
    records = generate(lines, "num=16", "condition=High", "guidance.scale=2")
    assert [record["condition"] for record in records[::16]] == ["low", "High", None]
    assert share(records[:16], "abc") > 0.65
    assert share(records[16:32], "xyz") > 0.65
    assert all(record["length"] == 7 for record in records[16:32])
    alone = generate("num=16", "condition=low", "guidance.scale=2")
    assert [record["tokens"] for record in alone] == [r["tokens"] for r in records[:16]]


def test_a_prompt_can_guide(generate):
    settings = ("num=6", "prompt=aab", "guidance.drop=prompt")
    records = generate(*settings, "guidance.scale=3")
    assert all(record["text"].startswith("aab") for record in records)
    assert all(record["calls"] % 2 == 0 for record in records)
    assert records != generate(*settings)


def test_evaluate_gives_the_labels_or_not(dlm, model, tmp_path, labelled_file):
    bounds = {}
    for condition in ("labels", "null"):
        output = tmp_path / f"{condition}.json"
        asked = (f"condition={condition}", "split=all", "draws=8")  # six texts alone are too few
        result = dlm("evaluate", f"checkpoint={model}", *asked, f"output={output}")
        assert result.code == 0, result.err
        bounds[condition] = json.loads(output.read_text())
    assert bounds["labels"]["condition"] == "labels"
    assert bounds["null"]["condition"] is None
    assert bounds["labels"]["nelbo"] < bounds["null"]["nelbo"]
    elsewhere = ("data=text", f"data.path={labelled_file}")
    unlabelled = dlm("evaluate", f"checkpoint={model}", *elsewhere, "condition=null")
    assert unlabelled.code == 0, unlabelled.err


def test_evaluate_wants_labels(refused, model, labelled_file):
    data = ("data=text", f"data.path={labelled_file}")
    prepared = (*data, "split=validation", "condition=null")  # so that the log is silent below
    assert main(["evaluate", f"checkpoint={model}", *prepared]) == 0
    assert "the data has no classes" in refused("evaluate", f"checkpoint={model}", *data)
    other = labelled_file.with_name("other.jsonl")
    other.write_text('{"text": "abc", "kind": "Middle"}\n' * 3)
    data = ("data=text", f"data.path={other}", "data.label=kind")
    assert main(["evaluate", f"checkpoint={model}", *data, "condition=null"]) == 0
    unknown = refused("evaluate", f"checkpoint={model}", *data)
    assert "the model knows no class 'Middle'; choose from: High, Low" in unknown
    assert "condition must be 'labels' or null" in refused(
        "evaluate", f"checkpoint={model}", "condition=Low"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["condition=Middle"], "there is no class 'Middle'; choose from: High, Low"),
        (["condition=Low", "guidance.scale=-1"], "guidance.scale must be at least 0, got -1"),
        (["guidance.scale=2"], "condition=NAME (this model knows High, Low)"),
        (["guidance.drop=prompt"], "guidance.drop=prompt needs a prompt"),
        (["guidance.drop=class"], "guidance.drop must be 'condition' or 'prompt', got 'class'"),
        (["guidance.scala=2"], "did you mean 'guidance.scale'?"),
        (["condition=Low", "guidance.classifier=/no/where"], "there is no classifier in"),
    ],
)
def test_mistakes_are_sentences(refused, model, arguments, sentence):
    assert sentence in refused("generate", f"checkpoint={model}", "device=cpu", *arguments)


def test_a_model_without_classes_says_so(refused, checkpoint):
    fixed = ("generate", f"checkpoint={checkpoint}", "device=cpu")
    assert "this model has no classes" in refused(*fixed, "condition=Emma")
    assert "(this model knows no classes)" in refused(*fixed, "guidance.scale=2")


def test_training_mistakes_are_sentences(refused, labelled_file, tmp_path):
    data = ("train", "data=text", f"data.path={labelled_file}", *SETTINGS, f"run_dir={tmp_path}/r")
    assert "set data.label, did you mean 'kind'" in refused(*data, "data.label=kinds")
    wrong = refused(*data, "data.label=kind", "backbone.num_classes=3")
    assert "the network takes 3 classes, the data has 2" in wrong
    assert "condition_dropout must be in [0, 1], got 2.0" in refused(
        *data, "data.label=kind", "condition_dropout=2.0"
    )


@pytest.fixture(scope="module")
def script():
    path = configs_dir().parent / "scripts" / "train_classifier.py"
    spec = spec_from_file_location("train_classifier", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def classifier(script, model, tmp_path_factory):
    """A classifier that has learned the alphabets, trained by the script."""
    folder = tmp_path_factory.mktemp("classifiers") / "kind"
    keys = ("--steps", "300", "--width", "32", "--depth", "1", "--lr", "0.005")
    assert script(["--checkpoint", str(model), "--output", str(folder), *keys]) == 0
    return folder


@pytest.mark.parametrize(("first_order", "scale", "least"), [(True, 6, 0.55), (False, 2, 0.8)])
def test_a_classifier_guides(generate, model, classifier, first_order, scale, least):
    """Unguided, the two shares sum to one. The Taylor series leans the right way, not far."""
    settings = (
        f"guidance.classifier={classifier}",
        f"guidance.first_order={first_order}",
        f"guidance.scale={scale}",
    )
    both = {name: generate("num=6", f"condition={name}", *settings) for name in ALPHABETS}
    shares = [share(both[name], letters) for name, letters in ALPHABETS.items()]
    assert sum(shares) / 2 > least, shares
    num_states = load(model).denoiser.process.num_states
    once = 1 + (2 if first_order else 12 * num_states)
    assert all(record["calls"] % once == 0 for record in [*both["Low"], *both["High"]])


def test_a_classifier_sees_no_padding(generate, classifier, lines):
    """It takes padding for text, so lines of other lengths are written by themselves."""
    settings = (lines, f"guidance.classifier={classifier}", "guidance.scale=4")
    together = generate("num=2", *settings)
    assert generate("num=2", "batch_size=1", *settings) == together
    assert [record["length"] for record in together] == [12, 12, 7, 7, 12, 12]


def test_the_script_measures_and_refuses(script, model, checkpoint, capsys, tmp_path):
    output = str(tmp_path / "out")
    keys = ("--output", output, "--steps", "3", "--width", "16", "--depth", "1", "--heads", "2")
    assert script(["--checkpoint", str(model), *keys]) == 0
    out = capsys.readouterr().out
    assert re.search(r"validation, alpha 0.05: [\d.]+ % right", out)
    assert "it knows High, Low" in out
    assert script(["--checkpoint", str(checkpoint), *keys]) == 2
    assert "has no classes; name their field by --label" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    assert script(["--checkpoint", str(model), "--output", str(tmp_path / "full"), *keys[2:]]) == 2


def test_a_classifier_belongs_to_its_tokenizer_and_process(refused, classifier, checkpoint):
    sentence = refused(
        "generate", f"checkpoint={checkpoint}", "condition=Low", f"guidance.classifier={classifier}"
    )
    assert "was trained with another tokenizer" in sentence


def test_fit_gives_the_classes_the_ids_of_the_model(dlm, model, tmp_path, monkeypatch):
    """Text of one class alone: its id is what the checkpoint says, not the first of the split."""
    seen = []

    def record(denoiser, batches, **options):
        batches = list(batches)
        seen.extend(batches)
        return measure_profile(denoiser, batches, **options)

    monkeypatch.setattr(fit, "measure_profile", record)
    path = tmp_path / "low.jsonl"
    path.write_text('{"text": "abcabcabcab", "kind": "Low"}\n' * 40)
    data = ("data=text", f"data.path={path}", "data.label=kind")
    keys = (f"checkpoint={model}", "draws=64", "bins=4", "device=cpu")
    result = dlm("fit", *keys, *data, f"output={tmp_path / 'schedule' / 'low.yaml'}")
    assert result.code == 0, result.err
    low = load(model).meta["classes"].index("Low")
    assert low > 0
    assert {int(row) for batch in seen for row in batch.condition} == {low}
