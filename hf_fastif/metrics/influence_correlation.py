"""Measure the correlation of influence scores (section 5.4 of the FastIF paper) with an `evaluate` module."""

from __future__ import annotations

import evaluate
import numpy as np
from scipy.stats import kendalltau, pearsonr, spearmanr

from hf_fastif.metrics.info import FASTIF, metric_info


COEFFICIENTS = {"pearson": pearsonr, "spearman": spearmanr, "kendall": kendalltau}
DESCRIPTION = """\
Pearson's r, Spearman's rho and Kendall's tau-b between two sets of influence scores for the same training examples,
computed for each query and averaged over queries.
"""
INPUTS = """\
Args:
    predictions: For each query, the scores of training examples.
    references: For each query, the reference scores of the same training examples.
Returns:
    pearson, spearman, kendall: Between -1 and 1. A query whose scores are constant counts as 0.
Examples:
    >>> InfluenceCorrelation(keep_in_memory=True).compute(predictions=[[0.1, 0.2, 0.4]], references=[[1, 3, 2]])
"""


class InfluenceCorrelation(evaluate.Metric):
    """An `evaluate` metric for the correlation of influence scores; see `DESCRIPTION` and `INPUTS` of this module.

    Example:
        ```python
        fast, full = trainer.compute_influence(queries), exact_trainer.compute_influence(queries)
        print(InfluenceCorrelation().compute(predictions=fast, references=full))
        ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(DESCRIPTION, INPUTS, FASTIF, "float64")

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        rows = [correlations(np.array(a), np.array(b)) for a, b in zip(predictions, references, strict=True)]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def correlations(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Compute `pearson`, `spearman` and `kendall` (tau-b) between two arrays of scores (N,); 0 if one is constant.

    Example:
        ```python
        fast, full = trainer.compute_influence(queries), exact_trainer.compute_influence(queries)
        print(correlations(fast[0], full[0])["spearman"])
        ```
    """
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return dict.fromkeys(COEFFICIENTS, 0.0)
    return {name: float(measure(one, other).statistic) for name, measure in COEFFICIENTS.items()}
