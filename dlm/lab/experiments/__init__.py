"""The experiments of `dlm lab`, one file each; `configs/lab/` holds their settings."""

from dlm.lab.experiments.adaptive import Adaptive
from dlm.lab.experiments.base import Claim, Experiment, Panel, Result, Series
from dlm.lab.experiments.bound import Bound
from dlm.lab.experiments.chains import Chains
from dlm.lab.experiments.corrector import Corrector
from dlm.lab.experiments.estimation import Estimation
from dlm.lab.experiments.grid import OptimalGrid
from dlm.lab.experiments.information import Information
from dlm.lab.experiments.kappa import Kappa
from dlm.lab.experiments.pairs import Pairs
from dlm.lab.experiments.plans import Plans
from dlm.lab.experiments.plug_in import PlugIn
from dlm.lab.experiments.steps import Steps
from dlm.lab.experiments.vocabulary import Vocabulary

__all__ = [
    "Adaptive",
    "Bound",
    "Chains",
    "Claim",
    "Corrector",
    "Estimation",
    "Experiment",
    "Information",
    "Kappa",
    "OptimalGrid",
    "Pairs",
    "Panel",
    "Plans",
    "PlugIn",
    "Result",
    "Series",
    "Steps",
    "Vocabulary",
]
