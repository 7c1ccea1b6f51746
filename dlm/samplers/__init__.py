"""Samplers and their parts."""

from dlm.samplers.auto import Auto
from dlm.samplers.base import OnStep, Prompt, Sampler, Samples, Step
from dlm.samplers.bending import Bending
from dlm.samplers.blocks import Block, BlockSampler, OnBlock
from dlm.samplers.correctors import Corrector, DenoiseRenoise, ForwardBackward, Gibbs, NoCorrector
from dlm.samplers.curve import InformationCurve
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
from dlm.samplers.orders import Confidence, EntropyBound, LeftToRight, Margin, Order, Random
from dlm.samplers.plans import (
    Balanced,
    Cosine,
    Decreasing,
    Equaliser,
    Even,
    FirstHitting,
    FromProfile,
    Increasing,
    Minimax,
    Plan,
)
from dlm.samplers.prompts import Template, cut, pack
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
from dlm.samplers.reveal import RevealSampler

__all__ = [
    "Ancestral",
    "Auto",
    "Balanced",
    "Bending",
    "Block",
    "BlockSampler",
    "ByConfidence",
    "Cap",
    "Confidence",
    "Corrector",
    "Cosine",
    "CosineGrid",
    "Decreasing",
    "DenoiseRenoise",
    "EntropyBound",
    "Equaliser",
    "Euler",
    "Even",
    "EvenGrid",
    "FirstHitting",
    "ForwardBackward",
    "FromProfile",
    "GeometricGrid",
    "Gibbs",
    "Grid",
    "GridSampler",
    "Increasing",
    "InformationCurve",
    "Kernel",
    "LeftToRight",
    "LoopGrid",
    "Margin",
    "MaximalCoupling",
    "MinP",
    "Minimax",
    "NoCorrector",
    "OnBlock",
    "OnStep",
    "Order",
    "Plan",
    "Plateau",
    "ProfileGrid",
    "Prompt",
    "Psi",
    "Random",
    "ReMDM",
    "RefreshedBridge",
    "Remasking",
    "Rescale",
    "RevealSampler",
    "SampledX0",
    "Sampler",
    "Samples",
    "Step",
    "TauLeaping",
    "Temperature",
    "Template",
    "TimeGrid",
    "TopK",
    "TopP",
    "Typical",
    "cut",
    "pack",
]
