"""Choose the features that an index is built from."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from hf_fastif.errors import InfluenceError
from hf_fastif.index.influence_index import InfluenceIndex
from hf_fastif.index.pooled import PooledFeatures
from hf_fastif.index.sketches import SketchFeatures
from hf_fastif.index.vectors import Features
from hf_fastif.model import Objective


def features_of(index: InfluenceIndex, objective: Objective) -> list[Features]:
    """Return the extractors that an index was built with, one per checkpoint."""
    if index.sketches is None:
        features = PooledFeatures(objective, index.name == "mean_pooled")
        return [features] * (index.faiss_index.d // features.size)
    return [SketchFeatures(objective, sketch.to(objective.space.device)) for sketch in index.sketches]


def custom_features(dataset: Dataset, features: np.ndarray | str) -> np.ndarray:
    """Return the user's features (N, d) as a float32 array, given as an array or as the name of a column.

    Raises:
        InfluenceError: If there is no such column, or not one row of features per example.
    """
    if isinstance(features, str):
        if features not in dataset.column_names:
            raise InfluenceError(
                f"features={features!r}: the columns are {', '.join(dataset.column_names)}; give one of them."
            )
        features = dataset.with_format("numpy")[:][features]
    matrix = np.ascontiguousarray(features, dtype=np.float32)
    if matrix.ndim != 2 or len(matrix) != len(dataset):
        raise InfluenceError(
            f"features: they have the shape {matrix.shape}; give ({len(dataset)}, d), one row per example."
        )
    return matrix
