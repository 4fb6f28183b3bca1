"""Measure how much the loss of a query rises when its most helpful training examples are removed.

Zheng et al. (2024) compare attribution methods in this way; it needs a model for each query and method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import numpy as np
from datasets import Dataset

from hf_fastif.analysis.retrained import Retrained, without_rows
from hf_fastif.analysis.session_tools import digests, open_analysis_results
from hf_fastif.data import without_indexes
from hf_fastif.metrics import two_way_interval
from hf_fastif.trainer import InfluenceTrainer


class LossRises:
    """Losses of the first few queries after training without the examples that a method calls most helpful to each.

    Every removal is trained once, whichever methods ask for it; the losses are kept in `output_dir/removals`.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer with the training set.
        queries (`datasets.Dataset`): The queries.
        train_on (`Callable`): Trains a model and returns its losses (Q,) on all queries, given training examples and
            the number of the repeat, which serves as the seed.
        depends_on (`Mapping[str, str]`): Everything else that `train_on` depends on.
        num_queries (`int`): Number of queries to measure, the first ones.
        share (`float`, *optional*, defaults to 0.01): Fraction of the training set to remove.
        num_repeats (`int`, *optional*, defaults to 1): Number of models for each removal.

    Example:
        ```python
        rises = LossRises(trainer, queries, train_on, {"epochs": "3"}, num_queries=10)
        print(rises.of(trainer.compute_influence(queries))["rise"])
        ```
    """

    def __init__(
        self,
        trainer: InfluenceTrainer,
        queries: Dataset,
        train_on: Callable[[Dataset, int], np.ndarray],
        depends_on: Mapping[str, str],
        *,
        num_queries: int,
        share: float = 0.01,
        num_repeats: int = 1,
    ):
        self.train = without_indexes(trainer.train_dataset)
        self.num_queries = min(num_queries, len(queries))
        self.num_removed = max(1, round(share * len(self.train)))
        self.num_repeats = num_repeats
        manifest = dict(depends_on) | digests(trainer, train_dataset=trainer.train_dataset, queries=queries)
        self._retrained = Retrained(open_analysis_results(trainer, "removals", manifest), train_on)

    def of(self, influence: np.ndarray) -> dict[str, float]:
        """Train without the most helpful examples of each query.

        Args:
            influence (`np.ndarray` of shape `(Q, N)`): Scores, negative for helpful examples.

        Returns:
            `dict[str, float]`: `rise`, the mean over queries and repeats of the loss minus that of the model of the
                same repeat that was trained on all examples, and the ends `rise_low` and `rise_high` of its 95 %
                interval, from resampling both.
        """
        helpful = np.argsort(influence[: self.num_queries], axis=1, kind="stable")[:, : self.num_removed]
        removals = [np.array([], dtype=np.int64), *helpful]
        models = [[without_rows(self.train, rows, r) for r in range(self.num_repeats)] for rows in removals]
        self._retrained.train(chain(*models))
        losses = np.array([[self._retrained.measured(*model) for model in repeats] for repeats in models])
        queries = np.arange(self.num_queries)
        # losses has the shape (1 + queries, repeats, Q)
        rises = losses[1 + queries, :, queries] - losses[0][:, queries].T

        def means(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            return rises[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))

        low, high = two_way_interval(means, rises.shape)
        return {"rise": float(rises.mean()), "rise_low": low, "rise_high": high}
