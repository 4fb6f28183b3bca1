"""Recall@m of retrieved candidates (section 5.2 of the FastIF paper) as an `evaluate` module."""

from __future__ import annotations

import evaluate
import numpy as np

from hf_fastif.errors import InfluenceError
from hf_fastif.metrics.info import FASTIF, metric_info


DESCRIPTION = """\
The share of the m most influential examples of each query that are among the k retrieved ones, as a mean over queries.
"""
INPUTS = """\
Args:
    predictions: For each query the rows that were retrieved, nearest first.
    references: For each query the rows of the truly most influential examples, strongest first.
    k: How many of the retrieved rows count; all unless given.
    m: How many of the most influential ones are to be found; all unless given.
Returns:
    recall: Between 0 and 1.
Examples:
    >>> RecallAtM(keep_in_memory=True).compute(predictions=[[7, 2, 5]], references=[[2, 9, 5, 1]], k=2, m=2)
    {'recall': 0.5}
"""


class RecallAtM(evaluate.Metric):
    """See `DESCRIPTION` and `INPUTS` of this module."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(DESCRIPTION, INPUTS, FASTIF, "int64")

    def _compute(
        self,
        predictions: list[list[int]],
        references: list[list[int]],
        k: int | None = None,
        m: int | None = None,
    ) -> dict[str, float]:
        shortest = min(len(row) for row in references)
        if shortest < (1 if m is None else m):
            raise InfluenceError(f"m={m}: a query has only {shortest} references; give more of them or a smaller m.")
        pairs = zip(predictions, references, strict=True)
        return {"recall": float(np.mean([len({*found[:k]} & {*best[:m]}) / len(best[:m]) for found, best in pairs]))}
