"""`dlm profile`: the file loads as a plan and as a grid, and generation takes both."""

import json

import numpy as np
import pytest
import torch

from dlm.cli import profile_report as report
from dlm.cli.main import main
from dlm.cli.profile_report import GRIDS
from dlm.evaluation.dependence import Dependence, known_counts
from dlm.evaluation.plan_costs import MEASURED, NAMES, PLANS, PlanCosts
from dlm.random import Key
from dlm.samplers.curve import InformationCurve
from dlm.samplers.grids import ProfileGrid
from dlm.samplers.plans import FromProfile
from dlm.schedules import Linear

FEW = ("sequences=8", "split=train", "budget=4")


@pytest.fixture(scope="module")
def profiled(tmp_path_factory, checkpoint):
    """The file of the tiny masked model."""
    output = tmp_path_factory.mktemp("profile") / "mine.json"
    assert main(["profile", f"checkpoint={checkpoint}", f"output={output}", *FEW]) == 0
    return output


@pytest.fixture(scope="module")
def uniform(tmp_path_factory, tiny):
    """A tiny model of even noise."""
    folder = tmp_path_factory.mktemp("runs") / "uniform"
    keys = ("process=uniform", "parameterization=leave_one_out", "trainer.max_steps=2")
    assert main(["train", *tiny, f"run_dir={folder}", *keys]) == 0
    return folder / "checkpoints" / "last.ckpt"


def test_the_file_is_a_curve_with_its_predictions(profiled):
    content = json.loads(profiled.read_text())
    curve = InformationCurve.load(profiled)
    assert curve.length == 16
    assert set(content["predictions"]) == {*NAMES.values(), MEASURED}
    for key, name in NAMES.items():
        for steps, (value, low, high) in content["predictions"][name].items():
            expected = curve.cost(PLANS[key].waits(16, int(steps), 16))
            assert value == pytest.approx(expected, abs=1e-9)
            assert low <= high
    assert list(content["predictions"]["even"]) == ["1", "2", "4", "8", "16"]
    assert content["total_correlation"][0] == pytest.approx(curve.total_correlation)
    assert content["loss"]["known"][-1] == 15
    assert content["split"] == "train"
    assert content["measured_sequences"] == 8
    assert profiled.with_suffix(".png").stat().st_size > 10_000


def test_plan_and_grid_load_it(profiled):
    plan = FromProfile(str(profiled))
    hidden = torch.tensor([16, 9])
    sizes = plan.sizes(hidden, 4, key=Key(0, torch.arange(2)), total=16)
    assert sizes.sum(-1).tolist() == [16, 9]
    assert tuple(sizes[0].tolist()) == InformationCurve.load(profiled).optimal_sizes(4)
    grid = ProfileGrid(str(profiled)).levels(4, Linear())
    assert len(grid) == 5
    assert (grid[0], grid[-1]) == (0, 1)


@pytest.mark.parametrize(
    "sampler",
    [("reveal", "plan=profile", "plan.path"), ("ancestral", "grid=profile", "grid.path")],
)
def test_generation_takes_it(dlm, checkpoint, profiled, tmp_path, sampler):
    name, choice, path = sampler
    output = tmp_path / "out.jsonl"
    keys = (f"sampler={name}", choice, f"{path}={profiled}", "sampler.steps=4", "num=2")
    result = dlm("generate", f"checkpoint={checkpoint}", *keys, f"output={output}")
    assert result.code == 0, result.err
    assert [json.loads(line)["calls"] <= 4 for line in output.read_text().splitlines()] == [
        True
    ] * 2


def test_it_says_what_it_comes_to(dlm, checkpoint, tmp_path):
    output = tmp_path / "p.json"
    keys = ("target=0.5", *FEW, f"output={output}")
    result = dlm("profile", f"checkpoint={checkpoint}", *keys)
    assert result.code == 0, result.err
    assert "At 4 calls, finite steps lose, in nats a sequence: even " in result.out
    assert "To lose no more than 0.5 nats takes " in result.out
    assert "The error of the network comes on top" in result.out
    content = json.loads(output.read_text())
    others = [content["predictions"][name]["4"][0] for name in NAMES.values()]
    better = content["crossed"]["4"] < min(others)
    best = list(NAMES)[int(np.argmin(others))]
    plan = f"plan=profile plan.path={output}" if better else best
    assert ("Use the plan of this profile" in result.out) == better
    calls = content["calls"]["profile" if better else NAMES[best]][0]
    for steps in (4, calls):
        line = f"sampler=reveal {plan} sampler.steps={steps}"
        assert f"dlm generate checkpoint={checkpoint} {line}" in result.out


def curve_costs(rise):
    """Costs of four sequences whose loss falls as `rise` says, a function of known positions."""
    known = known_counts(16)
    losses = np.array([[4 - rise(n) + 0.01 * k for n in known] for k in range(4)])
    return PlanCosts.of(Dependence(16, known, losses), 50, 0)


def test_the_plan_of_a_profile_is_recommended_where_it_gains_on_other_sequences():
    twice = curve_costs(lambda n: 1.5 * (n >= 3) + 1.5 * (n >= 13))  # two steps at odd places
    assert report.recommended(twice, 4) == MEASURED
    assert "Use the plan of this profile" in report.reason(twice, 4, MEASURED)
    assert report.plan_keys(MEASURED, "a b.json") == "plan=profile plan.path='a b.json'"
    straight = curve_costs(lambda n: 0.2 * n)
    assert report.recommended(straight, 4) == "even"
    assert "Use even: on sequences that" in report.reason(straight, 4, "even")
    assert report.plan_keys("minimax tc", "p") == "plan=minimax plan.against=tc"


def test_the_seed_and_not_the_batch_decides(dlm, checkpoint, profiled, tmp_path):
    def values(name: str, *overrides: str) -> list[float]:
        output = tmp_path / f"{name}.json"
        keys = (f"checkpoint={checkpoint}", f"output={output}", *FEW, *overrides)
        assert dlm("profile", *keys).code == 0
        return json.loads(output.read_text())["loss"]["nats"]

    first = json.loads(profiled.read_text())["loss"]["nats"]
    assert values("a", "batch_size=3") == pytest.approx(first, rel=1e-5)
    assert values("b", "seed=1") != pytest.approx(first, rel=1e-5)
    assert values("c", "draws=2") != pytest.approx(first, rel=1e-5)
    assert len(values("d", "length=8")) < len(first)


def test_even_noise_gets_a_grid_a_probe_and_diagnostics(dlm, uniform, tmp_path):
    output = tmp_path / "grid.json"
    keys = (f"output={output}", *FEW, "sequences=16", "probe=true", "diagnostics=true")
    result = dlm("profile", f"checkpoint={uniform}", *keys)
    assert result.code == 0, result.err
    assert "At 4 steps, grid=even loses" in result.out
    assert f"sampler=ancestral grid=profile grid.path={output} sampler.steps=4" in result.out
    content = json.loads(output.read_text())
    assert set(content["grids"]) == {*GRIDS, MEASURED}
    assert len(ProfileGrid(str(output)).levels(4, Linear())) == 5
    assert set(content["sensitivity"]) == {"held-out text", "samples"}
    for found in content["sensitivity"].values():
        assert min(found["total_variation"]) > 0
        assert len(found["kl_stderr"]) == len(found["noise"]) == 12
    terms = content["diagnostics"]["terms"]
    assert terms["names"] == ["hidden", "replaced", "kept"]
    assert terms["share"][0] == 0
    assert sum(terms["share"]) == pytest.approx(1)
    assert min(terms["nats"][1:]) > 0
    diagnostics = content["diagnostics"]
    assert sum(diagnostics["loss"]["share"]) == pytest.approx(1)
    assert min(diagnostics["gradient"]["variance"]) > 0
    for suffix in (".png", ".probe.png", ".diagnostics.png"):
        assert output.with_suffix(suffix).stat().st_size > 10_000
    text = tmp_path / "out.jsonl"
    keys = ("grid=profile", f"grid.path={output}", "sampler.steps=4", f"output={text}")
    assert dlm("generate", f"checkpoint={uniform}", *keys).code == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["output=profile.txt"], "output must be a file NAME.json"),
        (["budget=0"], "budget must be at least 1"),
        (["draws=0"], "draws must be at least 1"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["sequences=3"], "sequences must be at least 4"),
        (["target=0"], "target must be above 0"),
        (["length=1"], "length must be at least 2"),
        (["length=99"], "length must be at most 16"),
        (["probe=true"], "shows only MASK"),
        (["split=testing"], "split"),
        (["precision=8"], "precision must be one of"),
        (["output=taken/p.json"], "cannot write 'taken/p.json'"),
    ],
)
def test_mistakes_are_sentences(refused, checkpoint, tmp_path, monkeypatch, overrides, sentence):
    monkeypatch.chdir(tmp_path)
    keys = [f"checkpoint={checkpoint}", *FEW, "output=p.json", *overrides]
    (tmp_path / "taken").write_text("a file, not a folder")
    assert sentence in refused("profile", *keys)
    assert not (tmp_path / "p.json").exists()
