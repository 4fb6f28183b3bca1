"""Measure the linear datamodeling score (Park et al., 2023) with an `evaluate` module."""

from __future__ import annotations

import evaluate
import numpy as np

from hf_fastif.metrics.datamodeling import SubsetLosses, lds
from hf_fastif.metrics.info import metric_info


DESCRIPTION = """\
How well sums of influence scores predict the losses of models trained on random subsets of the training set:
the Spearman correlation over the models, averaged over queries.
"""
INPUTS = """\
Args:
    predictions: For each query, the influence of all N training examples, positive for one that raises the loss.
    references: For each query, its losses under S models.
    members: S rows of N booleans: which examples each model was trained on.
    num_draws: Number of bootstrap samples of models and queries for the 95 % interval, by default 1000; 0 for none.
Returns:
    lds: Between -1 and 1.
    low, high: The ends of the interval.
"""
CITATION = """\
@inproceedings{park2023trak,
    title = {{TRAK}: Attributing Model Behavior at Scale},
    author = {Park, Sung Min and Georgiev, Kristian and Ilyas, Andrew and Leclerc, Guillaume and Madry, Aleksander},
    booktitle = {International Conference on Machine Learning},
    year = {2023}
}
"""


class LinearDatamodelingScore(evaluate.Metric):
    """An `evaluate` metric for the linear datamodeling score; see `DESCRIPTION` and `INPUTS` of this module.

    Example:
        ```python
        truth, influence = SubsetLosses.load("subsets.safetensors"), trainer.compute_influence(queries)
        metric = LinearDatamodelingScore()
        print(metric.compute(predictions=influence, references=truth.losses.T, members=truth.members))
        ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(DESCRIPTION, INPUTS, CITATION, "float64")

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        members: list[list[bool]],
        num_draws: int = 1000,
    ) -> dict[str, float]:
        truth = SubsetLosses(np.asarray(members, dtype=bool), np.asarray(references).T)
        score = lds(np.asarray(predictions), truth, num_draws)
        return {"lds": score.mean, "low": score.low, "high": score.high}
