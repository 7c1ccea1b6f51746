"""Samplers and their parts."""

from dlm.samplers.base import OnStep, Prompt, Sampler, Samples
from dlm.samplers.filters import MinP, Temperature, TopK, TopP
from dlm.samplers.grid_sampler import GridSampler
from dlm.samplers.grids import CosineGrid, EvenGrid, Grid
from dlm.samplers.kernels import Ancestral, Kernel, MaximalCoupling

__all__ = [
    "Ancestral",
    "CosineGrid",
    "EvenGrid",
    "Grid",
    "GridSampler",
    "Kernel",
    "MaximalCoupling",
    "MinP",
    "OnStep",
    "Prompt",
    "Sampler",
    "Samples",
    "Temperature",
    "TopK",
    "TopP",
]
