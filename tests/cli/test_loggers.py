"""Loggers besides the CSV files: they need no network, and what they wrote can be found."""

import pytest


@pytest.mark.parametrize(
    ("logger", "trace"), [("tensorboard", "**/events.out.tfevents.*"), ("wandb", "**/*.wandb")]
)
def test_a_run_logs_without_a_network(dlm, tiny, tmp_path, logger, trace):
    folder = tmp_path / "run"
    result = dlm("train", *tiny, f"logger={logger}", f"run_dir={folder}", "trainer.max_steps=2")
    assert result.code == 0, result.err
    assert list(folder.glob(trace))
