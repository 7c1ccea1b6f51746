"""dlm: training language models by masked and uniform discrete diffusion."""

from dlm.denoiser import Context, Denoiser, Predictor
from dlm.errors import UserError
from dlm.processes import Absorbing, Prediction, Process, State, Uniform

__all__ = [
    "Absorbing",
    "Context",
    "Denoiser",
    "Prediction",
    "Predictor",
    "Process",
    "State",
    "Uniform",
    "UserError",
]
__version__ = "0.1.0"
