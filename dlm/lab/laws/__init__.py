"""Laws of token sequences on which everything can be computed."""

from dlm.lab.laws.base import Estimate, Law, sampled_curve, sampled_entropy
from dlm.lab.laws.chains import HiddenMarkov, MarkovChain
from dlm.lab.laws.products import MixtureOfProducts, Product
from dlm.lab.laws.rows import Dirichlet, Family, Lazy, Weights, Zipf
from dlm.lab.laws.tables import Table, table_of

__all__ = [
    "Dirichlet",
    "Estimate",
    "Family",
    "HiddenMarkov",
    "Law",
    "Lazy",
    "MarkovChain",
    "MixtureOfProducts",
    "Product",
    "Table",
    "Weights",
    "Zipf",
    "sampled_curve",
    "sampled_entropy",
    "table_of",
]
