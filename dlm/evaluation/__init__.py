"""Likelihood of a model on a data set, and records of what it generates."""

from dlm.evaluation.generation import record_samples, write_records
from dlm.evaluation.likelihood import Bound, evaluate, sequence_nelbo, sequence_nelbo_steps
from dlm.evaluation.totals import Likelihood, LikelihoodTotals, default_draws

__all__ = [
    "Bound",
    "Likelihood",
    "LikelihoodTotals",
    "default_draws",
    "evaluate",
    "record_samples",
    "sequence_nelbo",
    "sequence_nelbo_steps",
    "write_records",
]
