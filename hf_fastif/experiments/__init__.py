"""Reproduce the experiments of the FastIF paper; only the recipes use these."""

from hf_fastif.experiments.bm25 import bm25_scores
from hf_fastif.experiments.correction_comparison import Corrections, corrections
from hf_fastif.experiments.correlation import Correlation, correlation
from hf_fastif.experiments.inverse_hessian import OTHERS, InverseHessian, inverse_hessian
from hf_fastif.experiments.removal_check import predicted_right, removal_check
from hf_fastif.experiments.retraining import Retraining, retraining
from hf_fastif.experiments.retrieval import Retrieval, retrieval
from hf_fastif.experiments.runtime import Runtime, runtime
from hf_fastif.experiments.sampling import balanced_queries
from hf_fastif.experiments.simulatability import Simulatability, as_predicted, simulatability


__all__ = [
    "Corrections",
    "Correlation",
    "InverseHessian",
    "OTHERS",
    "Retraining",
    "Retrieval",
    "Runtime",
    "Simulatability",
    "as_predicted",
    "balanced_queries",
    "bm25_scores",
    "corrections",
    "correlation",
    "inverse_hessian",
    "predicted_right",
    "removal_check",
    "retraining",
    "retrieval",
    "runtime",
    "simulatability",
]
