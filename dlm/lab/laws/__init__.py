"""Laws of token sequences on which everything can be computed."""

from dlm.lab.laws.base import Estimate, Law, sampled_curve, sampled_entropy
from dlm.lab.laws.blocks import Blocks, Copy, Independent, Pairs, Repeated, Tunable
from dlm.lab.laws.chains import HiddenMarkov, MarkovChain
from dlm.lab.laws.codes import Checksum, MdsCode
from dlm.lab.laws.empirical import Draws, Empirical
from dlm.lab.laws.ngram import Letters, Ngram
from dlm.lab.laws.permutation import Permutation
from dlm.lab.laws.products import MixtureOfProducts, Product
from dlm.lab.laws.rows import Dirichlet, Family, Lazy, Weights, Zipf
from dlm.lab.laws.tables import Table, table_of

__all__ = [
    "Blocks",
    "Checksum",
    "Copy",
    "Dirichlet",
    "Draws",
    "Empirical",
    "Estimate",
    "Family",
    "HiddenMarkov",
    "Independent",
    "Law",
    "Lazy",
    "Letters",
    "MarkovChain",
    "MdsCode",
    "MixtureOfProducts",
    "Ngram",
    "Pairs",
    "Permutation",
    "Product",
    "Repeated",
    "Table",
    "Tunable",
    "Weights",
    "Zipf",
    "sampled_curve",
    "sampled_entropy",
    "table_of",
]
