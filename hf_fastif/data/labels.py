"""Find, name and replace the labels of a dataset."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Value


def label_name(dataset: Dataset, label: int) -> str:
    """Return the name of a class, or its number as text if the classes have no names."""
    feature = dataset.features["label"]
    return feature.int2str(label) if isinstance(feature, ClassLabel) else str(label)


def relabelled(dataset: Dataset, labels: np.ndarray) -> Dataset:
    """Replace the class numbers in the `ClassLabel` column `label`.

    Args:
        dataset (`datasets.Dataset`): N rows.
        labels (`np.ndarray` of shape `(N,)`): The new class numbers, in the order of the rows.

    Example:

    ```python
    noisy = relabelled(train, np.where(flip, 1 - labels, labels))
    ```
    """
    feature = dataset.features["label"]
    return dataset.remove_columns("label").add_column("label", labels.tolist()).cast_column("label", feature)


def label_column(dataset: Dataset) -> str | None:
    """Return the name of the label column, or None if there is none."""
    classes = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    usual = [name for name in ("label", "labels") if isinstance(dataset.features.get(name), Value | ClassLabel)]
    return next(iter(usual + classes), None)


def names_of_labels(dataset: Dataset, model_names: dict[int, str]) -> list[str]:
    """Return the model's names of the labels, or the dataset's if the model has none.

    Args:
        dataset (`datasets.Dataset`): Examples, whose label column may have names.
        model_names (`dict[int, str]`): The names that the model has (`config.id2label`).
    """
    names, column = [model_names[label] for label in sorted(model_names)], label_column(dataset)
    feature = dataset.features[column] if column else None
    unnamed = names == [f"LABEL_{label}" for label in range(len(names))]
    return (
        feature.names if unnamed and isinstance(feature, ClassLabel) and feature.num_classes == len(names) else names
    )
