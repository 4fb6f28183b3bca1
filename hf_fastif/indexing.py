"""Which features an index is made of, and how it is searched for a query."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from hf_fastif.attribution import Search
from hf_fastif.batches import ExampleBatches
from hf_fastif.curvature import captured_layers
from hf_fastif.index import (
    Features,
    GradientFeatures,
    InfluenceIndex,
    PooledFeatures,
    last_layer_parts,
    leading_parts,
    output_layer,
)
from hf_fastif.objective import Objective
from hf_fastif.passes import Passes
from hf_fastif.solving import SolverSetup


def index_features(setup: SolverSetup) -> Features:
    """The features that `args.index_features` names."""
    args, objective = setup.args, setup.objective
    if args.index_features == "pooled":
        return PooledFeatures(objective)
    if args.index_features == "gradient_sketch":
        return GradientFeatures(objective, leading_parts(setup.factors(), args.index_size))
    modules = {id(module): name for name, module in objective.model.named_modules()}
    layers = captured_layers(objective, setup.examples.take([0]))
    return GradientFeatures(objective, last_layer_parts(objective, layers, modules[id(output_layer(objective.model))]))


def own_features(dataset: Dataset, features: np.ndarray | str) -> np.ndarray:
    """Features (N, d) that the user brings, as an array or in a column.

    Raises:
        ValueError: If there is not one row for each example.
    """
    if isinstance(features, str):
        if features not in dataset.column_names:
            raise ValueError(f"features={features!r}: the columns are {', '.join(dataset.column_names)}.")
        features = dataset.with_format("numpy")[:][features]
    found = np.ascontiguousarray(features, dtype=np.float32)
    if found.ndim != 2 or len(found) != len(dataset):
        raise ValueError(f"features: they have the shape {found.shape}; give ({len(dataset)}, d), a row an example.")
    return found


def searching(
    index: InfluenceIndex,
    objective: Objective,
    queries: ExampleBatches,
    query_features: np.ndarray | None,
    k: int,
    passes: Passes,
) -> Search:
    """Finds k candidates of some queries: by their s_test where the index holds gradients, else by their features.

    Raises:
        ValueError: If the index is of the user's own features and the queries' are missing.
    """
    if index.parts is not None:
        features = GradientFeatures(objective, index.parts)
        return lambda _rows, vectors: index.search(features.of_vectors(vectors.cpu()).numpy(), k)
    own = query_features
    if index.name == "pooled":
        own = PooledFeatures(objective).of_queries(queries, passes)
    if own is None or len(own) != len(queries):
        raise ValueError(
            "query_features: the index is of features of your own; give those of the examples, an array of shape "
            f"({len(queries)}, d)."
        )
    return lambda rows, _vectors: index.search(own[rows.start : rows.stop], k)
