"""Laws on which everything can be computed: oracles, and samplers pushed through exactly."""

from dlm.lab.oracle import Oracle
from dlm.lab.perturbed import Distorted, Noisy, Tempered

__all__ = ["Distorted", "Noisy", "Oracle", "Tempered"]
