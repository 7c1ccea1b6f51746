"""Noise processes and what flows between network, loss and sampler."""

from dlm.processes.absorbing import Absorbing
from dlm.processes.base import Process
from dlm.processes.hybrid import Hybrid
from dlm.processes.lifted_uniform import LiftedUniform
from dlm.processes.prediction import Filter, Prediction, State
from dlm.processes.prior import Prior, pack_weights
from dlm.processes.uniform import Uniform

__all__ = [
    "Absorbing",
    "Filter",
    "Hybrid",
    "LiftedUniform",
    "Prediction",
    "Prior",
    "Process",
    "State",
    "Uniform",
    "pack_weights",
]
