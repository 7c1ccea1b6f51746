"""Settings of the trainer that are refused with a sentence."""

from pathlib import Path

import pytest
import torch
import yaml

from dlm.errors import UserError
from dlm.training import check_trainer

DEFAULT = Path(__file__).parents[3] / "configs/trainer/default.yaml"


def settings(**changes) -> dict:
    return {**yaml.safe_load(DEFAULT.read_text()), "accelerator": "cpu", **changes}


def test_default_passes():
    check_trainer(settings())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precision": "16-mixed"}, "needs a GPU"),
        ({"precision": "bf16"}, "must be one of"),
        ({"max_steps": -3}, "max_steps .* got -3"),
        ({"max_steps": 0}, "max_steps"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val"),
        ({"val_check_interval": 0.5}, "val_check_interval"),
        ({"accumulate_grad_batches": 3, "val_check_interval": 500}, "multiple .* try 498"),
        ({"check_val_every_n_epoch": 1}, "check_val_every_n_epoch"),
        ({"log_every_n_steps": 0}, "log_every_n_steps"),
    ],
)
def test_bad_settings_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        check_trainer(settings(**changes))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_a_sentence():
    with pytest.raises(UserError, match="CUDA"):
        check_trainer(settings(accelerator="cuda"))
