"""Every process from the command line: train, resume, evaluate, generate; and what is refused."""

import json

import pytest

from dlm.checkpoint import load
from dlm.processes import Hybrid, LiftedUniform, Prior

LOO = "parameterization=leave_one_out"


@pytest.mark.parametrize(
    ("process", "made"),
    [("lifted_uniform", LiftedUniform), ("hybrid", Hybrid), ("prior", Prior)],
)
def test_a_process_is_one_word(dlm, tiny, tmp_path, process, made):
    run, checkpoint = tmp_path / "run", f"checkpoint={tmp_path / 'run' / 'checkpoints/last.ckpt'}"
    keys = [*tiny, f"process={process}", LOO, f"run_dir={run}"]
    assert dlm("train", *keys, "trainer.max_steps=2").code == 0
    result = dlm("train", f"run_dir={run}", "resume=true", "trainer.max_steps=3")
    assert result.code == 0, result.err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 3

    output = tmp_path / "bound.json"
    assert dlm("evaluate", checkpoint, "steps=4", f"output={output}").code == 0
    bound = json.loads(output.read_text())
    assert bound["nelbo"] == pytest.approx(summary["nelbo"], rel=1e-6)
    assert bound["process"] == made.__name__
    assert bound["comparable"] is True

    texts = tmp_path / "texts.jsonl"
    keys = [checkpoint, "num=3", "prompt=the cat", "sampler.steps=5", f"output={texts}"]
    assert dlm("generate", *keys).code == 0
    lines = [json.loads(line) for line in texts.read_text().splitlines()]
    assert len(lines) == 3
    assert all(line["text"].startswith("the cat") for line in lines)
    assert isinstance(load(checkpoint.partition("=")[2]).denoiser.process, made)


def test_the_prior_is_the_frequency_of_tokens(dlm, tiny, tmp_path, text_file):
    run = tmp_path / "run"
    assert dlm("train", *tiny, "process=prior", f"run_dir={run}", "trainer.max_steps=1").code == 0
    denoiser, tokenizer, _ = load(run / "checkpoints" / "last.ckpt")
    law = denoiser.process.log_base.exp()
    assert law.sum().item() == pytest.approx(1.0)
    often, rarely = (tokenizer.encode(letter)[0] for letter in "tr")
    text = text_file.read_text("utf-8")
    assert text.count("t") > 5 * text.count("r")
    assert law[often] > 3 * law[rarely] > 0


@pytest.mark.parametrize("objective", ["simple", "clipped", "discrete_elbo"])
def test_validation_logs_the_bound_whatever_was_trained_on(dlm, tiny, tmp_path, objective):
    run, output = tmp_path / "run", tmp_path / "bound.json"
    keys = [*tiny, f"objective={objective}", f"run_dir={run}", "trainer.max_steps=1"]
    assert dlm("train", *keys).code == 0
    checkpoint = f"checkpoint={run / 'checkpoints' / 'last.ckpt'}"
    assert dlm("evaluate", checkpoint, f"output={output}").code == 0
    bound = json.loads(output.read_text())["nelbo"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["nelbo"] == pytest.approx(bound, rel=1e-6)
    assert bound > 1  # an untrained model of letters


def test_the_coupled_bound_is_labelled(dlm, tiny, tmp_path):
    run, output = tmp_path / "run", tmp_path / "bound.json"
    keys = [*tiny, "process=uniform", LOO, "objective=maximal_coupling", "trainer.max_steps=1"]
    assert dlm("train", *keys, f"run_dir={run}").code == 0
    checkpoint = f"checkpoint={run / 'checkpoints' / 'last.ckpt'}"
    result = dlm("evaluate", checkpoint, "bound=maximal_coupling", f"output={output}")
    assert result.code == 0
    assert "no: valid, not tight" in result.out
    assert json.loads(output.read_text())["comparable"] is False
    assert dlm("generate", checkpoint, "sampler=maximal_coupling", "sampler.steps=3").code == 0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["process=uniform", "objective=dynamic"], "noise with MASK, not for Uniform"),
        (["process=hybrid", "objective=maximal_coupling"], "Hybrid noise changes with time"),
        (["process=hybrid", "process.uniform_fraction=0"], "use process=absorbing for 0"),
        (["process=prior", "process.weights=abc"], "weights of a prior"),
        (["objective=discrete_elbo", "objective.steps=0"], "steps must be at least 1"),
        (["objective=clipped", "objective.weighting.max_weight=0"], "max_weight must be positive"),
        (["process=lifted_uniform", "denoiser.noise_conditioning=false"], "LiftedUniform"),
    ],
)
def test_what_is_not_defined_is_refused_with_a_sentence(dlm, tiny, tmp_path, keys, words):
    run = tmp_path / "run"
    result = dlm("train", *tiny, *keys, f"run_dir={run}", "trainer.max_steps=1")
    assert result.code == 2
    assert words in result.err
    assert not (run / "checkpoints").exists()
    result = dlm("validate", *tiny, *keys)
    assert result.code == 2
    assert words in result.err


def test_a_coupled_sampler_refuses_a_hybrid_model(dlm, tiny, tmp_path):
    run = tmp_path / "run"
    assert dlm("train", *tiny, "process=hybrid", f"run_dir={run}", "trainer.max_steps=1").code == 0
    checkpoint = f"checkpoint={run / 'checkpoints' / 'last.ckpt'}"
    result = dlm("generate", checkpoint, "sampler=maximal_coupling")
    assert result.code == 2
    assert "use sampler=ancestral" in result.err
