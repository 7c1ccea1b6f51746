"""dlm: training language models by masked and uniform discrete diffusion.

Names are loaded when they are first used, so that `dlm --help` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm.checkpoint import Loaded, export, load
    from dlm.denoiser import Context, Denoiser, Predictor
    from dlm.errors import UserError
    from dlm.processes import (
        Absorbing,
        Hybrid,
        LiftedUniform,
        Prediction,
        Prior,
        Process,
        State,
        Uniform,
    )

__all__ = [
    "Absorbing",
    "Context",
    "Denoiser",
    "Hybrid",
    "LiftedUniform",
    "Loaded",
    "Prediction",
    "Predictor",
    "Prior",
    "Process",
    "State",
    "Uniform",
    "UserError",
    "export",
    "load",
]
__version__ = "0.1.0"

_HOMES = {
    "dlm.checkpoint": ("Loaded", "export", "load"),
    "dlm.denoiser": ("Context", "Denoiser", "Predictor"),
    "dlm.errors": ("UserError",),
    "dlm.processes": (
        "Absorbing",
        "Hybrid",
        "LiftedUniform",
        "Prediction",
        "Prior",
        "Process",
        "State",
        "Uniform",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'dlm' has no attribute {name!r}")
