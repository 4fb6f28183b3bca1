"""What can be asked of a trainer beyond influence itself: functions from a trainer to a result."""

from hf_fastif.analysis.bm25 import bm25_scores
from hf_fastif.analysis.correcting import Correction, correct
from hf_fastif.analysis.corrections import Corrections, corrections
from hf_fastif.analysis.correlation import Correlation, correlation, correlations
from hf_fastif.analysis.inverse_hessian import InverseHessian, inverse_hessian
from hf_fastif.analysis.lds import (
    Lds,
    LdsOfMethods,
    SubsetLosses,
    lds,
    lds_of_methods,
    query_losses,
    retrain_on_subsets,
)
from hf_fastif.analysis.methods import METHODS, check_methods, gradient_cosine, representation_similarity
from hf_fastif.analysis.mislabels import Mislabels, mislabels
from hf_fastif.analysis.recall import Recall, RecallOfFeatures, recall, recall_of_features
from hf_fastif.analysis.result import AnalysisResult
from hf_fastif.analysis.retraining import Retraining, retraining
from hf_fastif.analysis.retrieval import Retrieval, retrieval
from hf_fastif.analysis.runtime import Runtime, runtime
from hf_fastif.analysis.simulatability import Simulatability, as_predicted, simulatability
from hf_fastif.analysis.work import balanced_queries


__all__ = [
    "METHODS",
    "AnalysisResult",
    "Correction",
    "Corrections",
    "Correlation",
    "InverseHessian",
    "Lds",
    "LdsOfMethods",
    "Mislabels",
    "Recall",
    "RecallOfFeatures",
    "Retraining",
    "Retrieval",
    "Runtime",
    "Simulatability",
    "SubsetLosses",
    "as_predicted",
    "balanced_queries",
    "bm25_scores",
    "correct",
    "corrections",
    "check_methods",
    "correlation",
    "correlations",
    "gradient_cosine",
    "inverse_hessian",
    "lds",
    "lds_of_methods",
    "mislabels",
    "query_losses",
    "recall",
    "recall_of_features",
    "representation_similarity",
    "retrain_on_subsets",
    "retraining",
    "retrieval",
    "runtime",
    "simulatability",
]
