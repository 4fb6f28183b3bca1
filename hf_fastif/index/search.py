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


# Returns the candidates (n, k) of n queries, given their positions and their s_test (n, P).
Search = Callable[[range, torch.Tensor], np.ndarray]


@dataclass(frozen=True)
class IndexSearch:
    """A search for the k candidates of each query: by s_test if the index holds gradients, otherwise by features.

    Attributes:
        index ([`InfluenceIndex`]): The index to search.
        checkpoints ([`CheckpointSet`]): The checkpoints at which features are computed.
        k (`int`): The number of candidates per query.
        sweep (`DatasetSweep`): Divides a pass over the queries into batches and processes.
        query_features (`np.ndarray` of shape `(Q, d)`, *optional*): Features of the queries; None if the index holds
            gradients.
    """

    index: InfluenceIndex
    checkpoints: CheckpointSet
    k: int
    sweep: DatasetSweep
    query_features: np.ndarray | None

    def __call__(self, numbers: range, vectors: torch.Tensor | None) -> np.ndarray:
        """Return the candidates (n, k) of the queries at these positions, whose s_test is `vectors` (n, P)."""
        return from_main(  # only the main process holds the vectors in memory
            lambda: self.index.search(self._features(numbers, vectors), self.k), self.sweep.accelerator
        )

    def _features(self, numbers: range, vectors: torch.Tensor | None) -> np.ndarray:
        if self.query_features is not None:
            return self.query_features[numbers.start : numbers.stop]
        by_checkpoint = vectors.split(self.checkpoints.objective.space.size, dim=1)
        parts = [part.of_vectors(vector) for part, vector in zip(self._sketches, by_checkpoint, strict=True)]
        return torch.cat(parts, dim=1).cpu().numpy()

    @cached_property
    def _sketches(self) -> list:
        return features_of(self.index, self.checkpoints.objective)


def query_features_of(
    index: InfluenceIndex,
    checkpoints: CheckpointSet,
    queries: ExampleBatches,
    given: np.ndarray | None,
    as_one: bool,
    sweep: DatasetSweep,
) -> np.ndarray | None:
    """Return the features (Q, d) to search with; None if the index is searched with s_test.

    Args:
        index ([`InfluenceIndex`]): The index to search.
        checkpoints ([`CheckpointSet`]): The checkpoints at which features are computed.
        queries (`ExampleBatches`): The examples.
        given (`np.ndarray` of shape `(Q, d)`, *optional*): The user's features, for an index of the user's features.
        as_one (`bool`): Whether all examples form a single query; its features are their mean (1, d).
        sweep (`DatasetSweep`): Divides a pass over the queries into batches and processes.

    Raises:
        InfluenceError: If the index holds the user's features and there is not one row of them per query.
    """
    if index.sketches is not None:
        return None
    features = given
    if index.name in ("pooled", "mean_pooled"):
        features = _pooled(index, checkpoints, queries, sweep)
    if features is None or len(features) != len(queries):
        raise InfluenceError(
            "query_features: the index was built from features that you supplied; give those of the queries too, an "
            f"array of shape ({len(queries)}, d)."
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
