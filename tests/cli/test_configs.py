"""Composing: every option of every group, free text, and sentences for mistakes."""

from pathlib import Path

import pytest
import yaml

from dlm.cli.compose import compose
from dlm.cli.help import configs_dir, group_options
from dlm.errors import UserError

OPTIONS = [
    (group, option)
    for group, options in group_options([configs_dir()]).items()
    for option in options
    if group not in ("lab", "law")  # of the lab: no part of a training run
]
TRAIN_GROUPS = [
    next(iter(entry))
    for entry in yaml.safe_load((configs_dir() / "train.yaml").read_text("utf-8"))["defaults"]
    if isinstance(entry, dict)
]
NASTY = [
    "It was, of course,",
    "a=b, c",
    "[MASK] sat {on} (the) [mat",
    "\"double\" and 'single' and `tick`",
    "cost: $5 ${vocab.size} ${oc.env:HOME} \\${x} \\\\${y}",
    "back\\slash \\' \\\" \\",
    "line\nbreak\ttab",
    " spaces at both ends ",
    "#hash !bang *star &and %percent @at ~tilde +plus -minus",
    "été 日本語 🐈",
    "true",
    "12",
    "1e-3",
    "",
    "__free_text_0__ __free_text_1__",
]


def test_groups_of_train_are_folders_with_options():
    assert {group for group, _ in OPTIONS} == set(TRAIN_GROUPS)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_validates(dlm, group, option):
    required = {
        "text": ["data.path=x"],
        "hf": [f"{group}.{'name' if group == 'data' else 'path'}=x"],
        "profile": [f"{group}.path=x"],
    }
    needs = required.get(option, []) if group in ("data", "tokenizer", "plan", "grid") else []
    result = dlm("validate", f"{group}={option}", *needs)
    assert result.code == 0, result.err
    assert "this config is fine" in result.out


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("key", ["prompt", "output"])
def test_free_text_means_itself(key, text):
    plain = compose("generate", ["checkpoint=x", f"{key}={text}"]).plain()
    assert plain[key] == text


@pytest.mark.parametrize("text", NASTY)
def test_paths_inside_groups_mean_themselves(text):
    config = compose("train", ["data=text", f"data.path={text}", f"run_dir={text}/run"])
    assert config.plain("data")["path"] == text
    assert config.plain("callbacks")["checkpoint"]["folder"] == f"{text}/run/checkpoints"


def test_null_is_the_absence_of_text():
    assert compose("generate", ["checkpoint=x", "prompt=null"]).plain()["prompt"] is None


def test_users_configs_join_in(tmp_path):
    folder = tmp_path / "it's [mine], yes"
    (folder / "process").mkdir(parents=True)
    (folder / "process" / "mine.yaml").write_text("_target_: a.B\nnum_states: ${vocab.size}\n")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "big.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /process: mine\nlength: 7\n"
    )
    config = compose("train", ["experiment=big"], [folder])
    assert config.plain("length") == 7
    assert not config.mentions("process", "vocab.mask_id")
    config.set("vocab", {"size": 5, "mask_id": None})
    assert config.plain("process") == {"_target_": "a.B", "num_states": 5}


def test_an_experiment_may_not_set_unknown_keys(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\nlenght: 7\n")
    with pytest.raises(UserError, match="'lenght'; did you mean 'length'"):
        compose("train", ["experiment=typo"], [tmp_path])


def test_mask_is_mentioned_by_the_process_that_needs_one():
    assert compose("train", []).mentions("process", "vocab.mask_id")
    assert not compose("train", ["process=uniform"]).mentions("process", "vocab.mask_id")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["lenght=5"], "there is no key 'lenght'; did you mean 'length'?"),
        (["proces=uniform"], "there is no key 'proces'; did you mean 'process'?"),
        (["trainer.max_step=5"], "did you mean 'trainer.max_steps'?"),
        (["backbone.widht=5"], "did you mean 'backbone.width'?"),
        (
            ["callbacks.chekpoint.every_n_train_steps=5"],
            "'callbacks.chekpoint.every_n_train_steps'",
        ),
        (["objective.steps=5"], "the chosen objective has no settings"),
        (["process=unifrm"], "there is no process=unifrm; did you mean 'uniform'?"),
        (["backbone=huge"], "there is no backbone=huge; choose from: 1b, medium, nano"),
        (["+foo=1"], "there is no key 'foo'"),
        (["seed=[1"], "cannot read 'seed=[1'"),
        (["seed=1,2"], "cannot read 'seed=1,2'"),
        (["seed=range(1,3)"], "cannot read 'seed=range(1,3)'"),
    ],
)
def test_mistakes_name_the_nearest_right_thing(overrides, sentence):
    with pytest.raises(UserError) as caught:
        compose("train", overrides)
    assert sentence in str(caught.value)


def test_required_keys_are_named():
    with pytest.raises(UserError, match="data.path is required; add data.path=VALUE"):
        compose("train", ["data=text"]).plain("data")
    with pytest.raises(UserError, match="checkpoint is required"):
        compose("generate", []).plain()


def test_an_interpolation_that_leads_nowhere_is_named():
    with pytest.raises(UserError, match="nowhere"):
        compose("train", ["seed=${nowhere}"]).plain("seed")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optimizer.lr=fast"], "optimizer.lr must be float, got 'fast'"),
        (["optimizer.betas=[0.9]"], "optimizer.betas must be"),
        (["backbone.width=7"], "width must be a multiple of 2 * heads"),
        (["+schedule.beta=1"], "denoiser.process.schedule.beta is not an argument of Linear"),
        (["schedule.alpha_min=2"], "alpha_min must be in [0, 1)"),
        (["trainer.max_steps=-3"], "trainer.max_steps"),
        (["trainer.precision=8"], "trainer.precision"),
        (["sampler.filter_on=both"], "sampler.filter_on must be 'loo' or 'denoiser', got 'both'"),
        (["denoiser._target_=os.system"], "denoiser._target_ 'os.system' is outside dlm"),
        (["backbone._target_=dlm.data.Austen"], "denoiser.backbone"),
        (["denoiser.time_conditioning=true", "backbone.time_conditioning=false"], "conditioning"),
        (["vocab.size=many"], "vocab.size"),
    ],
)
def test_validate_refuses_what_cannot_be_built(refused, overrides, sentence):
    assert sentence in refused("validate", *overrides)


def test_validate_says_where_the_vocabulary_comes_from(dlm):
    assert "1,025 (tokenizer.vocab_size)" in dlm("validate").out
    assert "1,024 (tokenizer.vocab_size)" in dlm("validate", "process=uniform").out
    assert "a placeholder" in dlm("validate", "tokenizer=gpt2").out
    assert "77 (vocab.size)" in dlm("validate", "vocab.size=77").out


def test_validate_shows_parameters_and_flops(dlm):
    out = dlm("validate", "backbone=small", "tokenizer=gpt2").out
    assert "blocks.*.attention.qkv.weight" in out
    assert "2304 x 768" in out
    assert "FLOPs per token" in out


def test_validate_leaves_nothing(dlm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dlm("validate").code == 0
    assert list(Path().iterdir()) == []
