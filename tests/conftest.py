"""What every test stands on: one thread a worker, no network, no GPU unless asked, no home folder.

The environment is set before anything imports torch, transformers or matplotlib, because they read
it once. Subprocesses started by a test inherit it, and so do the workers of pytest-xdist, which so
share one cache of tokenizers and tokens: a fresh folder, removed at the end.
"""

import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="offline")

import pytest
import torch
from hypothesis import HealthCheck, settings

# Two busy cores make wall-clock deadlines a coin toss; the same examples every time make a failure
# one that can be looked into.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_configure(config: pytest.Config) -> None:
    """The first process makes the cache folder and will remove it."""
    if not hasattr(config, "workerinput"):
        os.environ["DLM_CACHE"] = tempfile.mkdtemp(prefix="dlm-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ["DLM_CACHE"], ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip themselves on a machine without CUDA."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
