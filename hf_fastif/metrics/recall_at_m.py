"""Measure recall@m of retrieved candidates (section 5.2 of the FastIF paper) with an `evaluate` module."""

from __future__ import annotations

import evaluate
import numpy as np

from hf_fastif.errors import InfluenceError
from hf_fastif.metrics.info import FASTIF, metric_info


DESCRIPTION = """\
The share of the m most influential examples of each query that are among the k retrieved ones, averaged over queries.
"""
INPUTS = """\
Args:
    predictions: For each query, the retrieved rows, nearest first.
    references: For each query, the rows of the truly most influential examples, strongest first.
    k: Number of retrieved rows to consider, by default all.
    m: Number of most influential examples to look for, by default all.
Returns:
    recall: Between 0 and 1.
Examples:
    >>> RecallAtM(keep_in_memory=True).compute(predictions=[[7, 2, 5]], references=[[2, 9, 5, 1]], k=2, m=2)
    {'recall': 0.5}
"""


class RecallAtM(evaluate.Metric):
    """An `evaluate` metric for recall@m; see `DESCRIPTION` and `INPUTS` of this module.

    Example:
        ```python
        retrieved = trainer.find_candidates(queries, 1000)
        strongest = abs(trainer.compute_influence(queries)).argsort(axis=1)[:, ::-1]
        print(RecallAtM().compute(predictions=retrieved, references=strongest, k=1000, m=10))
        ```
    """

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
        shares = [len({*retrieved[:k]} & {*best[:m]}) / len(best[:m]) for retrieved, best in pairs]
        return {"recall": float(np.mean(shares))}
