"""Correlation of influence scores (section 5.4 of the FastIF paper) as an `evaluate` module."""

from __future__ import annotations

import evaluate
import numpy as np
from scipy.stats import kendalltau, pearsonr, spearmanr

from hf_fastif.metrics.info import FASTIF, metric_info


COEFFICIENTS = {"pearson": pearsonr, "spearman": spearmanr, "kendall": kendalltau}
DESCRIPTION = """\
Pearson's r, Spearman's rho and Kendall's tau (b) between two sets of influence scores of the same training examples,
for each query, as means over queries.
"""
INPUTS = """\
Args:
    predictions: For each query the scores of some training examples.
    references: For each query the scores of the same training examples that are taken for the truth.
Returns:
    pearson, spearman, kendall: Between -1 and 1; a query whose scores do not vary counts as 0.
Examples:
    >>> InfluenceCorrelation(keep_in_memory=True).compute(predictions=[[0.1, 0.2, 0.4]], references=[[1, 3, 2]])
"""


class InfluenceCorrelation(evaluate.Metric):
    """See `DESCRIPTION` and `INPUTS` of this module."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(DESCRIPTION, INPUTS, FASTIF, "float64")

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        found = [correlations(np.array(a), np.array(b)) for a, b in zip(predictions, references, strict=True)]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def correlations(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """`pearson`, `spearman` and `kendall` (tau-b) of two rows of scores; 0 where one of them does not vary."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return dict.fromkeys(COEFFICIENTS, 0.0)
    return {name: float(measure(one, other).statistic) for name, measure in COEFFICIENTS.items()}
