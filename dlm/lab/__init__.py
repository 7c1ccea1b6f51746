"""Laws on which everything can be computed: oracles, and samplers pushed through exactly."""

from dlm.lab.oracle import Oracle

__all__ = ["Oracle"]
