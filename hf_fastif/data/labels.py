"""Labels of a dataset: their column, their names, and others in their place."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Value


def label_name(dataset: Dataset, label: int) -> str:
    """What a class is called in a dataset; its number where classes have no names."""
    feature = dataset.features["label"]
    return feature.int2str(label) if isinstance(feature, ClassLabel) else str(label)


def relabelled(dataset: Dataset, labels: np.ndarray) -> Dataset:
    """The dataset with other class numbers (N,) in its `ClassLabel` column `label`."""
    feature = dataset.features["label"]
    return dataset.remove_columns("label").add_column("label", labels.tolist()).cast_column("label", feature)


def label_column(dataset: Dataset) -> str | None:
    """The column of the labels, if there is one."""
    classes = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    usual = [name for name in ("label", "labels") if isinstance(dataset.features.get(name), Value | ClassLabel)]
    return next(iter(usual + classes), None)
