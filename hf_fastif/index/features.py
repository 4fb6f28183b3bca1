"""Choose the features that an index is built from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Dataset

from hf_fastif.checkpoints import CheckpointSet
from hf_fastif.curvature import captured_layers
from hf_fastif.errors import InfluenceError
from hf_fastif.index.build import Features
from hf_fastif.index.gradients import GradientFeatures, last_layer_parts, leading_parts
from hf_fastif.index.influence_index import InfluenceIndex
from hf_fastif.index.pooled import PooledFeatures, output_layer
from hf_fastif.index.store import made_index
from hf_fastif.model import Objective
from hf_fastif.solvers import SolverSetup


def choose_features(
    dataset: Dataset,
    given: np.ndarray | str | None,
    add_to: InfluenceIndex | None,
    checkpoints: CheckpointSet,
    setup: Callable[[], SolverSetup],
) -> tuple[str, list[Features] | np.ndarray]:
    """Choose the features of an index: the user's, those of an index to extend, or those of `args.index_features`.

    Args:
        dataset (`datasets.Dataset`): The dataset to index.
        given (`np.ndarray` or `str`, *optional*): The user's features, or the name of the column that holds them.
        add_to ([`InfluenceIndex`], *optional*): The index to extend.
        checkpoints ([`CheckpointSet`]): The checkpoints at which features are computed.
        setup (`Callable`): Returns the solver setup of the checkpoint that is currently loaded.

    Returns:
        `tuple`: The name of the features, and either one extractor per checkpoint or the user's array (N, d).

    Raises:
        InfluenceError: If the user's features have the wrong shape, or the model lacks the layer that they come from.
    """
    if given is not None:
        return "own", custom_features(dataset, given)
    if add_to is not None:
        return add_to.name, features_of(add_to, checkpoints.objective)
    features = []
    for number in range(len(checkpoints)):
        with checkpoints.at(number):
            features.append(index_features(setup(), len(checkpoints)))
    return setup().args.index_features, features


def index_features(setup: SolverSetup, num_checkpoints: int) -> Features:
    """Return the extractor of `args.index_features` for the checkpoint that is currently loaded.

    With several checkpoints, `args.index_size` entries of a gradient sketch are divided among them.
    """
    args, objective = setup.args, setup.objective
    if args.index_features in ("pooled", "mean_pooled"):
        return PooledFeatures(objective, args.index_features == "mean_pooled")
    if args.index_features == "gradient_sketch":
        size = min(max(1, args.index_size // num_checkpoints), objective.space.size)
        made_index(size * num_checkpoints, args.index_factory, True, args.index_search)  # raises before the long fit
        return GradientFeatures(objective, leading_parts(setup.factors(), size))
    modules = {id(module): name for name, module in objective.model.named_modules()}
    layers = captured_layers(objective, setup.examples.take([0]))
    return GradientFeatures(objective, last_layer_parts(objective, layers, modules[id(output_layer(objective))]))


def features_of(index: InfluenceIndex, objective: Objective) -> list[Features]:
    """Return the extractors that an index was built with, one per checkpoint."""
    if index.parts is None:
        features = PooledFeatures(objective, index.name == "mean_pooled")
        return [features] * (index.faiss_index.d // features.size)
    device = objective.model.device
    return [GradientFeatures(objective, [part.to(device) for part in parts]) for parts in index.parts]


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
