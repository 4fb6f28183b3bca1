"""The linear datamodeling score (Park et al., 2023) as an `evaluate` module."""

from __future__ import annotations

import evaluate
import numpy as np

from hf_fastif.metrics.datamodeling import SubsetLosses, lds
from hf_fastif.metrics.info import metric_info


DESCRIPTION = """\
How well sums of influences predict the losses of models that were trained on random parts of the training set:
Spearman correlation over the models, as a mean over queries.
"""
INPUTS = """\
Args:
    predictions: For each query the influence of all N training examples, positive where one raises the loss.
    references: For each query its losses under S models.
    members: S rows of N booleans: which examples each model was trained on.
    num_draws: How often models and queries are drawn anew for the 95 % interval, 1000 unless given; 0 for none.
Returns:
    lds: Between -1 and 1.
    low, high: The interval.
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
    """See `DESCRIPTION` and `INPUTS` of this module."""

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
        found = lds(np.asarray(predictions), truth, num_draws)
        return {"lds": found.mean, "low": found.low, "high": found.high}
