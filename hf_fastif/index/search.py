"""Search an index for the candidates of a query."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hf_fastif.checkpoints import CheckpointSet
from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import DatasetSweep, from_main
from hf_fastif.index.features import features_of
from hf_fastif.index.influence_index import InfluenceIndex


Search = Callable[[range, torch.Tensor], np.ndarray]


def candidate_search(
    index: InfluenceIndex,
    checkpoints: CheckpointSet,
    queries: ExampleBatches,
    query_features: np.ndarray | None,
    k: int,
    sweep: DatasetSweep,
    as_one: bool,
) -> Search:
    """Finds k candidates of some queries: by their s_test where the index holds gradients, else by their features.

    Raises:
        ValueError: If the index is of the user's own features and the queries' are missing.
    """
    objective = checkpoints.objective

    def search(features: Callable[[], np.ndarray]) -> np.ndarray:
        return from_main(lambda: index.search(features(), k), sweep.accelerator)  # the others have it on disk

    if index.parts is not None:
        features = features_of(index, objective)

        def of_vectors(vectors: torch.Tensor) -> np.ndarray:
            own = vectors.split(objective.space.size, dim=1)
            found = [part.of_vectors(vector) for part, vector in zip(features, own, strict=True)]
            return torch.cat(found, dim=1).cpu().numpy()

        return lambda _rows, vectors: search(lambda: of_vectors(vectors))
    own = query_features
    if index.name in ("pooled", "mean_pooled"):
        own = _pooled(index, checkpoints, queries, sweep)
    if own is None or len(own) != len(queries):
        raise InfluenceError(
            "query_features: the index is of features of your own; give those of the examples, an array of shape "
            f"({len(queries)}, d)."
        )
    own = own.mean(axis=0, keepdims=True) if as_one else own
    return lambda rows, _vectors: search(lambda: own[rows.start : rows.stop])


def _pooled(
    index: InfluenceIndex, checkpoints: CheckpointSet, queries: ExampleBatches, sweep: DatasetSweep
) -> np.ndarray:
    found = []
    for number, features in enumerate(features_of(index, checkpoints.objective)):
        with checkpoints.at(number):
            found.append(features.of_queries(queries, sweep))
    return np.concatenate(found, axis=1)
