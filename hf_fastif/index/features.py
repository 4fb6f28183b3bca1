"""Which features an index is made of, and how it is searched for a query."""

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
    """Decide which features an index is made of: the user's, those of an index that is added to, or the setting's.

    Args:
        dataset (`datasets.Dataset`): What is indexed.
        given (`np.ndarray` or `str`, *optional*): The user's features, or the column that holds them.
        add_to ([`InfluenceIndex`], *optional*): The index to which rows are added.
        checkpoints ([`CheckpointSet`]): Where features are computed.
        setup (`Callable`): Makes the setup of the checkpoint that is in the model, with the settings.

    Returns:
        The name of the features, and what computes them at each checkpoint, or the user's array (N, d).
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


def custom_features(dataset: Dataset, features: np.ndarray | str) -> np.ndarray:
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
