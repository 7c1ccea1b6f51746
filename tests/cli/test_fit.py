"""`dlm fit`: what it writes trains a model, whose checkpoint evaluates."""

import json

import pytest
import torch
import yaml

from dlm.checkpoint import load
from dlm.cli import fit
from dlm.cli.main import main
from dlm.evaluation.likelihood import stratified
from dlm.evaluation.profile import measure_profile
from dlm.schedules import Linear, Piecewise


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, checkpoint):
    """A folder of configs with a schedule and times, as `dlm fit` writes them."""
    folder = tmp_path_factory.mktemp("my configs")
    output = folder / "schedule" / "fitted.yaml"
    assert main(["fit", f"checkpoint={checkpoint}", f"output={output}", "bins=8", "draws=400"]) == 0
    return folder


def test_it_shows_the_loss_and_says_what_to_do_next(dlm, checkpoint, tmp_path, monkeypatch):
    """The density is for the schedule of the checkpoint, not for the fitted one."""
    measured = []
    monkeypatch.setattr(
        fit,
        "measure_profile",
        lambda *a, **k: measured.append(measure_profile(*a, **k)) or measured[0],
    )
    output = tmp_path / "schedule" / "mine.yaml"
    result = dlm("fit", f"checkpoint={checkpoint}", f"output={output}", "bins=4", "draws=200")
    assert result.code == 0
    assert "the loss by noise level" in result.out
    assert "std over t, Linear" in result.out
    assert f"dlm train --config-dir={tmp_path} schedule=mine" in result.out
    assert f"dlm train --config-dir={tmp_path} times=mine" in result.out
    (profile,) = measured
    knots = yaml.safe_load(output.read_text())["knots"]
    assert tuple(knots) == profile.flat_schedule().knots
    times = yaml.safe_load((tmp_path / "times" / "mine.yaml").read_text())
    assert times["bins"] == 4
    assert times["density"] == pytest.approx(profile.density(Linear()), abs=1e-6)
    assert times["density"] != pytest.approx(profile.density(Piecewise(tuple(knots))), rel=1e-3)


@pytest.mark.parametrize("stride", [13, 21])
def test_levels_are_spread_over_every_part_of_a_split(
    dlm, checkpoint, tmp_path, monkeypatch, stride
):
    """One row of 13 or 21: their numbers in the split are near one another by the golden ratio."""
    used, length = 24, 16
    text = tmp_path / "long.txt"
    text.write_text(
        ("the cat sat on a mat and ran to them all " * 400)[: used * stride * length - 1]
    )
    drawn = []

    def recorded(*arguments):
        for level, key in stratified(*arguments):
            drawn.append(level)
            yield level, key

    monkeypatch.setattr("dlm.evaluation.profile.stratified", recorded)
    keys = (f"draws={used}", "split=all", "data=text", f"data.path={text}", "bins=4")
    output = tmp_path / "schedule" / "part.yaml"
    result = dlm("fit", f"checkpoint={checkpoint}", f"output={output}", "batch_size=5", *keys)
    assert result.code == 0, result.err
    levels = torch.cat(drawn).sort().values
    assert len(levels) == used
    around = torch.cat([levels, levels[:1] + 1])
    assert around.diff().max() < 2 / used  # (1 + 2 / sqrt(5)) / used at most


def test_the_seed_and_not_the_batch_decides(dlm, checkpoint, tmp_path):
    def knots(name: str, *overrides: str) -> list[float]:
        output = tmp_path / "schedule" / f"{name}.yaml"
        keys = (f"checkpoint={checkpoint}", f"output={output}", "bins=4", "draws=200", *overrides)
        assert dlm("fit", *keys).code == 0
        return yaml.safe_load(output.read_text())["knots"]

    first = knots("a")
    assert knots("b", "batch_size=5") == pytest.approx(first, rel=1e-5)
    assert knots("c", "seed=1") != pytest.approx(first, rel=1e-5)
    assert knots("d", "split=validation") != pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_a_fitted_schedule_trains_and_its_checkpoint_evaluates(
    dlm, fitted, tiny, tmp_path, process
):
    run = tmp_path / "run"
    keys = (*tiny, f"run_dir={run}", "trainer.max_steps=3", f"process={process}")
    assert dlm("train", "--config-dir", fitted, *keys, "schedule=fitted").code == 0
    last = run / "checkpoints" / "last.ckpt"
    schedule = load(last).denoiser.process.schedule
    assert isinstance(schedule, Piecewise)
    assert len(schedule.knots) == 9
    found = tmp_path / "found.json"
    assert dlm("evaluate", f"checkpoint={last}", f"output={found}").code == 0
    summary = json.loads((run / "summary.json").read_text())
    assert json.loads(found.read_text())["nelbo"] == pytest.approx(summary["nelbo"], rel=1e-5)
    assert dlm("generate", f"checkpoint={last}", "num=1").code == 0


@pytest.mark.parametrize("times", ["fitted", "importance"])
def test_importance_sampling_trains_and_resumes(dlm, fitted, tiny, tmp_path, times):
    def train(name: str, steps: int, *overrides: str) -> dict:
        keys = (*tiny, f"run_dir={tmp_path / name}", f"trainer.max_steps={steps}", *overrides)
        result = dlm("train", "--config-dir", fitted, *keys, f"times={times}", *learn)
        assert result.code == 0, result.err
        return torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)

    learn = ("times.bins=4", "times.min_draws=1") if times == "importance" else ()
    whole = train("whole", 6)
    train("parts", 3)
    parts = train("parts", 6, "resume=true")
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][key]), key
    assert torch.equal(whole["times"]["draws"], parts["times"]["draws"])
    assert whole["times"]["draws"].sum() == (48 if times == "importance" else 0)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["output=fitted.yaml"], "output must be DIR/schedule/NAME.yaml"),
        (["output=schedule/fitted.json"], "output must be DIR/schedule/NAME.yaml"),
        (["draws=0"], "draws must be at least 1"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["bins=2"], "4 bins"),
        (["bins=64", "draws=20"], "too few for 64 bins; raise draws"),
        (["split=testing"], "split"),
        (["precision=8"], "precision must be one of"),
    ],
)
def test_mistakes_are_sentences(refused, checkpoint, tmp_path, monkeypatch, overrides, sentence):
    monkeypatch.chdir(tmp_path)
    keys = [f"checkpoint={checkpoint}", "output=schedule/fitted.yaml", *overrides]
    assert sentence in refused("fit", *keys)
    assert not (tmp_path / "schedule").exists()
