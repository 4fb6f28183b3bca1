"""Which features an index is made of, and how it is searched for a query."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset

from hf_fastif.attribution import Search
from hf_fastif.batches import ExampleBatches
from hf_fastif.checkpoints import CheckpointSet
from hf_fastif.curvature import captured_layers
from hf_fastif.errors import InfluenceError
from hf_fastif.index import (
    Features,
    GradientFeatures,
    InfluenceIndex,
    PooledFeatures,
    last_layer_parts,
    leading_parts,
    made_index,
    output_layer,
)
from hf_fastif.objective import Objective
from hf_fastif.passes import Passes
from hf_fastif.processes import from_main
from hf_fastif.solving import SolverSetup


def index_features(setup: SolverSetup, num_checkpoints: int) -> Features:
    """The features that `args.index_features` names, at the checkpoint that is in the model.

    Several checkpoints share the numbers of a sketch.
    """
    args, objective = setup.args, setup.objective
    if args.index_features in ("pooled", "mean_pooled"):
        return PooledFeatures(objective, args.index_features == "mean_pooled")
    if args.index_features == "gradient_sketch":
        size = min(max(1, args.index_size // num_checkpoints), objective.space.size)
        made_index(size * num_checkpoints, args.index_factory, True, args.index_search)  # refused before the fit
        return GradientFeatures(objective, leading_parts(setup.factors(), size))
    modules = {id(module): name for name, module in objective.model.named_modules()}
    layers = captured_layers(objective, setup.examples.take([0]))
    return GradientFeatures(objective, last_layer_parts(objective, layers, modules[id(output_layer(objective))]))


def features_of(index: InfluenceIndex, objective: Objective) -> list[Features]:
    """The features that an index was made of, at each checkpoint."""
    if index.parts is None:
        features = PooledFeatures(objective, index.name == "mean_pooled")
        return [features] * (index.faiss_index.d // features.size)
    device = objective.model.device
    return [GradientFeatures(objective, [part.to(device) for part in own]) for own in index.parts]


def own_features(dataset: Dataset, features: np.ndarray | str) -> np.ndarray:
    """Features (N, d) that the user brings, as an array or in a column.

    Raises:
        ValueError: If there is not one row for each example.
    """
    if isinstance(features, str):
        if features not in dataset.column_names:
            raise InfluenceError(f"features={features!r}: the columns are {', '.join(dataset.column_names)}.")
        features = dataset.with_format("numpy")[:][features]
    found = np.ascontiguousarray(features, dtype=np.float32)
    if found.ndim != 2 or len(found) != len(dataset):
        raise InfluenceError(
            f"features: they have the shape {found.shape}; give ({len(dataset)}, d), a row an example."
        )
    return found


def searching(
    index: InfluenceIndex,
    checkpoints: CheckpointSet,
    queries: ExampleBatches,
    query_features: np.ndarray | None,
    k: int,
    passes: Passes,
    as_one: bool,
) -> Search:
    """Finds k candidates of some queries: by their s_test where the index holds gradients, else by their features.

    Raises:
        ValueError: If the index is of the user's own features and the queries' are missing.
    """
    objective = checkpoints.objective

    def search(features: Callable[[], np.ndarray]) -> np.ndarray:
        return from_main(lambda: index.search(features(), k), passes.accelerator)  # the others have it on disk

    if index.parts is not None:
        features = features_of(index, objective)

        def of_vectors(vectors: torch.Tensor) -> np.ndarray:
            own = vectors.split(objective.space.size, dim=1)
            found = [part.of_vectors(vector) for part, vector in zip(features, own, strict=True)]
            return torch.cat(found, dim=1).cpu().numpy()

        return lambda _rows, vectors: search(lambda: of_vectors(vectors))
    own = query_features
    if index.name in ("pooled", "mean_pooled"):
        own = _pooled(index, checkpoints, queries, passes)
    if own is None or len(own) != len(queries):
        raise InfluenceError(
            "query_features: the index is of features of your own; give those of the examples, an array of shape "
            f"({len(queries)}, d)."
        )
    own = own.mean(axis=0, keepdims=True) if as_one else own
    return lambda rows, _vectors: search(lambda: own[rows.start : rows.stop])


def _pooled(index: InfluenceIndex, checkpoints: CheckpointSet, queries: ExampleBatches, passes: Passes) -> np.ndarray:
    found = []
    for number, features in enumerate(features_of(index, checkpoints.objective)):
        with checkpoints.at(number):
            found.append(features.of_queries(queries, passes))
    return np.concatenate(found, axis=1)
