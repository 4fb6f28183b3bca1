"""Evaluate and apply influence: recall of an index, wrong labels, the linear datamodeling score, correction."""

from hf_fastif.analysis.correction import Correction, correct
from hf_fastif.analysis.corrector import ANCHORS, GUARD, SYSTEMS, Corrector, Log, Plan
from hf_fastif.analysis.lds import LdsOfMethods, lds_of_methods
from hf_fastif.analysis.loss_rise import LossRises
from hf_fastif.analysis.methods import METHODS, Method, check_methods, gradient_cosine, representation_similarity
from hf_fastif.analysis.mislabels import Mislabels, mislabels
from hf_fastif.analysis.recall import Recall, RecallOfFeatures, recall, recall_of_features
from hf_fastif.analysis.result import AnalysisResult
from hf_fastif.analysis.retrained import Retrained, without_rows
from hf_fastif.analysis.session_tools import changed, digests, influence_manifest, open_analysis_results
from hf_fastif.analysis.subsets import query_losses, retrain_on_subsets


__all__ = [
    "ANCHORS",
    "AnalysisResult",
    "Correction",
    "Corrector",
    "GUARD",
    "LdsOfMethods",
    "Log",
    "LossRises",
    "METHODS",
    "Method",
    "Mislabels",
    "Plan",
    "Recall",
    "RecallOfFeatures",
    "Retrained",
    "SYSTEMS",
    "changed",
    "check_methods",
    "correct",
    "digests",
    "gradient_cosine",
    "influence_manifest",
    "lds_of_methods",
    "mislabels",
    "open_analysis_results",
    "query_losses",
    "recall",
    "recall_of_features",
    "representation_similarity",
    "retrain_on_subsets",
    "without_rows",
]
