"""Noise processes and what flows between network, loss and sampler."""

from dlm.processes.absorbing import Absorbing
from dlm.processes.base import Filter, Prediction, Process, State
from dlm.processes.uniform import Uniform

__all__ = ["Absorbing", "Filter", "Prediction", "Process", "State", "Uniform"]
