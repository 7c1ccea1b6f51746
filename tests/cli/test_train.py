"""`dlm train` and what it leaves; resuming; refusals."""

import csv
import json
import os

import pytest
import torch
import yaml

from dlm.checkpoint import load
from dlm.cli.runs import choose_folder


def weights(folder):
    return load(folder / "checkpoints" / "last.ckpt").denoiser.state_dict()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_run_leaves_what_it_should(trained):
    names = {"config.yaml", "metrics.csv", "summary.json", "loss.png", "checkpoints"}
    assert names <= {path.name for path in trained.iterdir()}
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["tokens_seen"] > 0
    assert summary["tokens_per_second"] > 0
    with (trained / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/nelbo"]]
    assert float(rows[-1]["val/nelbo"]) == summary["nelbo"]
    assert summary["best_nelbo"] == pytest.approx(min(float(row["val/nelbo"]) for row in rows))
    assert summary["bits_per_byte"] > 0


def test_the_config_is_saved_resolved(trained, tiny):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert "${" not in json.dumps(config)
    assert config["overrides"] == [*tiny, "trainer.max_steps=4"]
    assert config["vocab"]["mask_id"] == config["vocab"]["size"] - 1
    assert config["denoiser"]["backbone"]["num_states"] == config["vocab"]["size"]
    assert config["denoiser"]["time_conditioning"] is False


def test_the_screen_shows_the_result_and_the_next_commands(dlm, tiny, tmp_path):
    result = dlm("train", *tiny, f"run_dir={tmp_path / 'run'}", "trainer.max_steps=1")
    assert result.code == 0
    for words in ("nelbo", "perplexity", "bits per byte", "dlm evaluate", "dlm generate", "resume"):
        assert words in result.out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["nelbo"] > 0


def test_weights_come_from_the_seed(dlm, tiny, tmp_path, trained):
    same, other = tmp_path / "same", tmp_path / "other"
    assert dlm("train", *tiny, f"run_dir={same}", "trainer.max_steps=4").code == 0
    assert dlm("train", *tiny, f"run_dir={other}", "trainer.max_steps=4", "seed=1").code == 0
    assert equal(weights(trained), weights(same))
    assert not equal(weights(trained), weights(other))


def test_uniform_trains_without_a_mask_and_sees_the_level(dlm, tiny, tmp_path, trained):
    overrides = ["process=uniform", "parameterization=leave_one_out", "objective=cross_entropy"]
    folder = tmp_path / "uniform"
    result = dlm("train", *tiny, *overrides, f"run_dir={folder}", "trainer.max_steps=2")
    assert result.code == 0
    denoiser, tokenizer, _ = load(folder / "checkpoints" / "best.ckpt")
    assert denoiser.time_conditioning
    assert tokenizer.mask_id is None
    assert tokenizer.size == load(trained / "checkpoints" / "best.ckpt").tokenizer.size - 1


def test_compile_and_checkpointing_reach_the_network(dlm, tiny, tmp_path, monkeypatch):
    called = []
    network = "dlm.networks.DiT"
    monkeypatch.setattr(f"{network}.compile_blocks", lambda self: called.append("compile"))
    monkeypatch.setattr(f"{network}.checkpoint_activations", lambda self: called.append("save"))
    keys = ["compile=true", "activation_checkpointing=true", "trainer.max_steps=1"]
    assert dlm("train", *tiny, f"run_dir={tmp_path / 'run'}", *keys).code == 0
    assert sorted(called) == ["compile", "save"]


def test_samples_are_written_while_training(dlm, tiny, tmp_path):
    sample = ["sample={every_n_steps: 1, num: 3, length: 5}", "sampler.steps=2"]
    keys = [key for key in tiny if key != "sample=null"]
    folder = tmp_path / "run"
    assert dlm("train", *keys, *sample, f"run_dir={folder}", "trainer.max_steps=2").code == 0
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 1, 1, 2, 2, 2]


def test_a_nasty_folder_name_just_works(dlm, tiny, tmp_path):
    folder = tmp_path / "it's [a] = {run}, $5 ${x} \\"
    assert dlm("train", *tiny, f"run_dir={folder}", "trainer.max_steps=1").code == 0
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert yaml.safe_load((folder / "config.yaml").read_text())["run_dir"] == str(folder)


# Resuming


def test_a_folder_with_a_run_is_refused(refused, tiny, trained):
    sentence = refused("train", *tiny, f"run_dir={trained}", "trainer.max_steps=4")
    assert "holds a run; add resume=true" in sentence


def test_resume_starts_an_empty_run_and_extends_it_exactly(dlm, tiny, tmp_path, trained):
    folder = tmp_path / "run"
    assert dlm("train", *tiny, f"run_dir={folder}", "resume=true", "trainer.max_steps=2").code == 0
    assert dlm("train", f"run_dir={folder}", "resume=true", "trainer.max_steps=4").code == 0
    assert equal(weights(folder), weights(trained))
    assert (folder / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 4
    assert config["length"] == 16  # the saved config wins over the defaults


def test_resuming_a_finished_run_changes_nothing(dlm, tiny, tmp_path):
    folder = tmp_path / "run"
    assert dlm("train", *tiny, f"run_dir={folder}", "trainer.max_steps=2").code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*.c*") if path.is_file()}
    summary = json.loads((folder / "summary.json").read_text())
    command = ["train", *tiny, f"run_dir={folder}", "trainer.max_steps=2", "resume=true"]
    assert dlm(*command).code == 0  # the first command and resume=true
    assert json.loads((folder / "summary.json").read_text()) == pytest.approx(summary)
    assert {path: path.read_bytes() for path in before if path.suffix == ".csv"} == {
        path: data for path, data in before.items() if path.suffix == ".csv"
    }


def test_what_follows_from_the_length_follows_on_resume(dlm, tiny, tmp_path):
    folder = tmp_path / "run"
    start = [*tiny, "lr=cosine", "lr.warmup_steps=1", "trainer.max_steps=1"]
    assert dlm("train", *start, f"run_dir={folder}").code == 0
    assert dlm("train", f"run_dir={folder}", "resume=true", "trainer.max_steps=2").code == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["lr"]["total_steps"] == 2


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=7", "seed"),
        ("length=8", "length"),
        ("process=uniform", "process._target_"),
        ("optimizer.lr=0.5", "optimizer.lr"),
    ],
)
def test_other_changes_on_resume_are_refused(refused, trained, override, key):
    sentence = refused("train", f"run_dir={trained}", "resume=true", override)
    assert sentence.startswith(f"{key} cannot change on resume")
    assert "trainer.max_steps and trainer.devices" in sentence


def test_a_damaged_config_is_a_sentence(refused, tmp_path):
    (tmp_path / "config.yaml").write_text("{")
    assert "damaged" in refused("train", f"run_dir={tmp_path}", "resume=true")


def test_other_data_under_the_same_path_cannot_resume(dlm, refused, tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abc abc\n\ncab cab\n\nbca bca\n")
    keys = [*(key for key in tiny if not key.startswith("data.path")), f"data.path={text}"]
    folder = tmp_path / "run"
    assert dlm("train", *keys, f"run_dir={folder}", "trainer.max_steps=1").code == 0
    text.write_text("abd abd\n\ndab dab\n\nbda bda\n")  # as many characters, other ones
    sentence = refused("train", f"run_dir={folder}", "resume=true")
    assert "is not the one this run began with" in sentence
    text.write_text("cab abc\n\nabc cab\n\nbca bca\n")  # the same characters, other text
    result = dlm("train", f"run_dir={folder}", "resume=true", "trainer.max_steps=2")
    assert result.code == 0
    assert "the training text has changed" in result.out


def test_folders_are_dated_and_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLM_RUN_DIR", raising=False)
    first = choose_folder(None, "mine", False)
    assert first.parent.name == "runs"
    assert first.name.endswith("-mine")
    first.mkdir(parents=True)
    (first / "config.yaml").write_text("")
    second = choose_folder(None, "mine", False)
    assert second.name == f"{first.name}-2"
    assert choose_folder(None, "mine", True) == first


def test_ranks_agree_on_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = choose_folder(None, "mine", False)
    (tmp_path / chosen).mkdir(parents=True)
    (tmp_path / chosen / "config.yaml").write_text("")
    monkeypatch.setenv("LOCAL_RANK", "1")  # as Lightning starts the second process
    assert choose_folder(None, "mine", False) == chosen
    assert choose_folder(str(chosen), "mine", False) == chosen  # not refused: rank 0 made it


def test_processes_started_from_outside_need_a_folder(refused, tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "run_dir" in refused("train", *tiny)


# Refusals


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optimizer.lr=fast"], "optimizer.lr must be float, got 'fast'"),
        (["length=long"], "length must be int, got 'long'"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["trainer.max_steps=-3"], "trainer.max_steps"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed needs a GPU"),
        (["trainer.devices=none"], "trainer"),
        (["+trainer.speed=9"], "trainer.speed is not an argument of Trainer"),
        (["sample={every_n_step: 1}"], "did you mean 'every_n_steps'?"),
        (["vocab.size=5"], "vocab is filled in"),
        (["process._target_=dlm.schedules.Linear"], "process"),
        (["data.path=/no/such/file"], "/no/such/file"),
        (["tokenizer=hf", "tokenizer.path=no.json"], "no.json"),
    ],
)
def test_mistakes_are_sentences(refused, tiny, tmp_path, overrides, sentence):
    folder = tmp_path / "run"
    keys = ["trainer.max_steps=1", f"run_dir={folder}", *overrides]
    assert sentence in refused("train", *tiny, *keys)
    assert not folder.exists()  # so that the corrected command may use it


def test_a_folder_that_cannot_be_made_is_a_sentence(refused, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused("train", *tiny, f"run_dir={tmp_path / 'file' / 'run'}")
    assert "is a file" in refused("train", *tiny, f"run_dir={tmp_path / 'file'}")


def test_no_environment_is_left_over(trained):
    assert not {"LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys()
