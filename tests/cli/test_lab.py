"""`dlm lab`: verdicts, files, exit codes, sentences."""

import json

import pytest

from dlm.cli import lab as command
from dlm.cli.help import configs_dir
from dlm.lab.experiments import Claim, Result

NAMES = sorted(path.stem for path in (configs_dir() / "lab").glob("*.yaml"))
TINY = ("bound", "steps=[1,2]", "length=2")


def test_the_list_names_every_experiment(dlm):
    result = dlm("lab", "--list")
    assert result.code == 0
    *lines, laws = result.out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line.split()) > 3 for line in lines)
    assert laws.startswith("law=NAME")
    assert all(path.stem in laws for path in (configs_dir() / "law").glob("*.yaml"))


def test_a_law_of_your_choice(dlm, tmp_path):
    folder = tmp_path / "mine"
    (folder / "law").mkdir(parents=True)
    (folder / "law" / "coin.yaml").write_text(
        "_target_: dlm.lab.laws.Product\nlength: 3\nsymbols: 2\nweights: [0.3, 0.7]\n"
    )
    few = ("steps=[1,2]", "samples=50", f"output={tmp_path}")
    assert dlm("lab", "plans", "law=checksum", "law.length=5", "law.symbols=3", *few).code == 0
    settings = json.loads((tmp_path / "plans.json").read_text())["settings"]
    assert settings["law"] == {"_target_": "dlm.lab.laws.Checksum", "length": 5, "symbols": 3}
    result = dlm("lab", "plans", "law=coin", f"--config-dir={folder}", *few)
    assert result.code == 0
    assert "coin" in dlm("lab", "--list", f"--config-dir={folder}").out
    claims = json.loads((tmp_path / "plans.json").read_text())["claims"]
    entropy = next(claim for claim in claims if claim["name"] == "entropy, nats")
    assert entropy["predicted"] == pytest.approx(1.8326, abs=1e-4)


def test_an_experiment_leaves_its_numbers_and_a_figure(dlm, tmp_path):
    result = dlm("lab", *TINY, f"output={tmp_path}/my results")
    assert result.code == 0
    assert "agrees with its predictions" in result.out
    assert result.out.count(" agrees  ") == 6
    found = json.loads((tmp_path / "my results" / "bound.json").read_text())
    assert found["holds"] is True
    assert found["settings"]["steps"] == [1, 2]
    assert found["settings"]["length"] == 2
    assert {claim["source"] for claim in found["claims"]} == {"derived here"}
    assert {"panel", "series", "role", "x", "y"} == set(found["rows"][0])
    assert (tmp_path / "my results" / "bound.png").stat().st_size > 10_000


def test_a_prediction_that_fails_is_exit_code_1(dlm, tmp_path):
    result = dlm("lab", "steps", "steps=[1,2]", "length=2", "slack=0.001", f"output={tmp_path}")
    assert result.code == 1
    assert "steps DISAGREES with its predictions" in result.out
    assert json.loads((tmp_path / "steps.json").read_text())["holds"] is False


def test_the_long_form_of_a_key_is_known_too(dlm, tmp_path):
    arguments = ("bound", "lab.steps=[1]", "lab.length=1", f"output={tmp_path}")
    assert dlm("lab", *arguments).code == 0
    assert json.loads((tmp_path / "bound.json").read_text())["settings"]["length"] == 1


def user_folder(tmp_path, names):
    """Experiments of a user's own: tiny ones under the names of ours, so that all are quick."""
    folder = tmp_path / "mine" / "lab"
    folder.mkdir(parents=True)
    for name in names:
        target = "_target_: dlm.lab.experiments.Bound\nsteps: [1]\nlength: 1\n"
        (folder / f"{name}.yaml").write_text(target)
    return folder.parent


def test_a_users_own_experiment_joins_in(dlm, tmp_path):
    folder = user_folder(tmp_path, ["mine"])
    assert "mine " in dlm("lab", "--list", f"--config-dir={folder}").out
    assert dlm("lab", "mine", f"--config-dir={folder}", f"output={tmp_path}").code == 0
    assert (tmp_path / "mine.json").is_file()


def test_all_runs_every_yaml_and_fails_if_one_does(dlm, tmp_path, monkeypatch):
    right, wrong = Claim("a", 1.0, 1.0, 0.0, "ours"), Claim("b", 2.0, 1.0, 0.0, "ours")
    seen = []

    def run(console, name, overrides, folders):
        seen.append((name, overrides))
        return Result((), (right, wrong) if name == broken else (right,))

    monkeypatch.setattr(command, "_run_one", run)
    broken = None
    result = dlm("lab", "all", f"output={tmp_path}")
    assert result.code == 0
    assert seen == [(name, [f"output={tmp_path}"]) for name in NAMES]
    assert result.out.count("1 of 1 claims hold") == len(NAMES)
    broken = "kappa"
    result = dlm("lab", "all")
    assert result.code == 1
    assert "DISAGREES  1 of 2 claims hold" in result.out


def test_help_knows_names(dlm):
    for arguments in (["lab", "--help"], ["lab", "pairs", "--help"]):
        page = dlm(*arguments)
        assert page.code == 0
        assert "usage: dlm lab NAME|all|--list [key=value ...]" in page.out
        assert all(name in page.out for name in NAMES)


def test_help_of_an_experiment_shows_its_own_keys_and_laws(dlm):
    plain, taking = dlm("lab", "pairs", "--help").out, dlm("lab", "plans", "--help").out
    assert "pairs*" in plain
    assert "lab.symbols=32" in plain
    assert "checksum" not in plain.partition("examples:")[0]
    assert "plans*" in taking
    assert "markov*" in taking
    assert "lab.samples=512" in taking
    assert "law.transition.stay=0.8" in taking


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name an experiment; choose from: adaptive"),
        (["pears"], "there is no experiment 'pears'; did you mean 'pairs'?"),
        (["pairs", "symbol=3"], "there is no key 'lab.symbol'; did you mean 'lab.symbols'?"),
        (["pairs", "symbols=many"], "lab.symbols must be int, got 'many'"),
        (["all", "steps=[3]"], "runs experiments as they are, got 'steps=[3]'"),
        (["pairs", "--lst"], "there is no option '--lst'"),
        (["adaptive", "steps=[3]", "lengths=[10]"], "divide the length"),
        (["steps", "law=markov"], "steps has laws of its own, got 'law=markov'; `dlm lab plans"),
        (["steps", "law.length=4"], "steps has laws of its own, got 'law.length=4'"),
        (["plans", "law=markof"], "there is no law=markof; did you mean 'markov'?"),
        (["plans", "law=checksum", "law.size=3"], "there is no key 'lab.law.size'"),
        (["plans", "law=code", "law.symbols=4"], "prime"),
        (["all", "law=markov"], "runs experiments as they are, got 'law=markov'"),
    ],
)
def test_mistakes_are_sentences(refused, arguments, sentence):
    assert sentence in refused("lab", *arguments)
