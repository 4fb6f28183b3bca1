"""What can be asked of a trainer beyond influence itself: functions from a trainer to a result."""

from hf_fastif.analysis.correcting import Correction, correct
from hf_fastif.analysis.corrections import Corrections, corrections
from hf_fastif.analysis.correlation import Correlation, correlation, correlations
from hf_fastif.analysis.inverse_hessian import InverseHessian, inverse_hessian
from hf_fastif.analysis.lds import Lds, SubsetLosses, lds, plot_lds, query_losses, retrain_on_subsets
from hf_fastif.analysis.mislabels import Mislabels, mislabels
from hf_fastif.analysis.recall import Recall, RecallOfFeatures, recall, recall_of_features
from hf_fastif.analysis.result import AnalysisResult
from hf_fastif.analysis.retraining import Retraining, retraining
from hf_fastif.analysis.runtime import Runtime, runtime
from hf_fastif.analysis.work import balanced_queries


__all__ = [
    "AnalysisResult",
    "Correction",
    "Corrections",
    "Correlation",
    "InverseHessian",
    "Lds",
    "Mislabels",
    "Recall",
    "RecallOfFeatures",
    "Retraining",
    "Runtime",
    "SubsetLosses",
    "balanced_queries",
    "correct",
    "corrections",
    "correlation",
    "correlations",
    "inverse_hessian",
    "lds",
    "mislabels",
    "plot_lds",
    "query_losses",
    "recall",
    "recall_of_features",
    "retrain_on_subsets",
    "retraining",
    "runtime",
]
