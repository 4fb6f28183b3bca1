"""Search an index for the candidates of a query."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from hf_fastif.checkpoints import CheckpointSet
from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import DatasetSweep, from_main
from hf_fastif.index.features import features_of
from hf_fastif.index.influence_index import InfluenceIndex


# Finds the candidates (n, k) of n queries, given their numbers and their s_test (n, P).
Search = Callable[[range, torch.Tensor], np.ndarray]


@dataclass(frozen=True)
class IndexSearch:
    """Finds k candidates of queries: by their s_test where the index holds gradients, else by their features.

    Attributes:
        index ([`InfluenceIndex`]): What is searched.
        checkpoints ([`CheckpointSet`]): Where features are computed.
        k (`int`): Candidates of each query.
        sweep (`DatasetSweep`): How passes over the queries are cut up.
        query_features (`np.ndarray` of shape `(Q, d)`, *optional*): Features of the queries, unless the index holds
            gradients.
    """

    index: InfluenceIndex
    checkpoints: CheckpointSet
    k: int
    sweep: DatasetSweep
    query_features: np.ndarray | None

    def __call__(self, numbers: range, vectors: torch.Tensor) -> np.ndarray:
        """Find the candidates (n, k) of the queries with these numbers and this s_test (n, P)."""
        return from_main(  # the other processes have the index on disk
            lambda: self.index.search(self._features(numbers, vectors), self.k), self.sweep.accelerator
        )

    def _features(self, numbers: range, vectors: torch.Tensor) -> np.ndarray:
        if self.query_features is not None:
            return self.query_features[numbers.start : numbers.stop]
        by_checkpoint = vectors.split(self.checkpoints.objective.space.size, dim=1)
        parts = [part.of_vectors(vector) for part, vector in zip(self._gradient_parts, by_checkpoint, strict=True)]
        return torch.cat(parts, dim=1).cpu().numpy()

    @cached_property
    def _gradient_parts(self) -> list:
        return features_of(self.index, self.checkpoints.objective)


def query_features_of(
    index: InfluenceIndex,
    checkpoints: CheckpointSet,
    queries: ExampleBatches,
    given: np.ndarray | None,
    as_one: bool,
    sweep: DatasetSweep,
) -> np.ndarray | None:
    """Return the features (Q, d) that queries are searched by; None where the index compares with s_test.

    Args:
        index ([`InfluenceIndex`]): What is searched.
        checkpoints ([`CheckpointSet`]): Where features are computed.
        queries (`ExampleBatches`): The examples.
        given (`np.ndarray` of shape `(Q, d)`, *optional*): The user's, for an index of the user's own features.
        as_one (`bool`): Whether all examples are one query; its features are their mean (1, d).
        sweep (`DatasetSweep`): How passes over the queries are cut up.

    Raises:
        InfluenceError: If the index is of the user's own features and those of the queries are missing.
    """
    if index.parts is not None:
        return None
    features = given
    if index.name in ("pooled", "mean_pooled"):
        features = _pooled(index, checkpoints, queries, sweep)
    if features is None or len(features) != len(queries):
        raise InfluenceError(
            "query_features: the index is of features of your own; give those of the examples, an array of shape "
            f"({len(queries)}, d)."
        )
    return features.mean(axis=0, keepdims=True) if as_one else features


def _pooled(
    index: InfluenceIndex, checkpoints: CheckpointSet, queries: ExampleBatches, sweep: DatasetSweep
) -> np.ndarray:
    parts = []
    for number, features in enumerate(features_of(index, checkpoints.objective)):
        with checkpoints.at(number):
            parts.append(features.of_queries(queries, sweep))
    return np.concatenate(parts, axis=1)
