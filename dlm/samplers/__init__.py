"""Samplers and their parts."""

from dlm.samplers.base import OnStep, Prompt, Sampler, Samples, Step
from dlm.samplers.bending import Bending
from dlm.samplers.correctors import Corrector, DenoiseRenoise, ForwardBackward, Gibbs, NoCorrector
from dlm.samplers.filters import MinP, Temperature, TopK, TopP, Typical
from dlm.samplers.grid_sampler import GridSampler
from dlm.samplers.grids import (
    CosineGrid,
    EvenGrid,
    GeometricGrid,
    Grid,
    LoopGrid,
    ProfileGrid,
    TimeGrid,
)
from dlm.samplers.kernels import (
    Ancestral,
    Euler,
    Kernel,
    MaximalCoupling,
    SampledX0,
    TauLeaping,
)
from dlm.samplers.remasking import (
    ByConfidence,
    Cap,
    Plateau,
    Psi,
    RefreshedBridge,
    Remasking,
    ReMDM,
    Rescale,
)

__all__ = [
    "Ancestral",
    "Bending",
    "ByConfidence",
    "Cap",
    "Corrector",
    "CosineGrid",
    "DenoiseRenoise",
    "Euler",
    "EvenGrid",
    "ForwardBackward",
    "GeometricGrid",
    "Gibbs",
    "Grid",
    "GridSampler",
    "Kernel",
    "LoopGrid",
    "MaximalCoupling",
    "MinP",
    "NoCorrector",
    "OnStep",
    "Plateau",
    "ProfileGrid",
    "Prompt",
    "Psi",
    "ReMDM",
    "RefreshedBridge",
    "Remasking",
    "Rescale",
    "SampledX0",
    "Sampler",
    "Samples",
    "Step",
    "TauLeaping",
    "Temperature",
    "TimeGrid",
    "TopK",
    "TopP",
    "Typical",
]
