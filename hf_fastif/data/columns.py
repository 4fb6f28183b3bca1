"""Columns of a dataset that a person can read."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value


COMPUTED = (  # columns of a result that are ours
    *("query_index", "train_index", "index", "influence", "direction", "rank", "tokens", "token_influence"),
    *("prediction", "probability", "loss", "residual", "std_err"),
)


def plain_columns(dataset: Dataset) -> Dataset:
    """The columns that a person can read: strings, numbers and labels, not token ids or arrays."""
    plain = [name for name, feature in dataset.features.items() if isinstance(feature, Value | ClassLabel)]
    return dataset.select_columns(plain).with_format(None)


def text_columns(dataset: Dataset) -> list[str]:
    """The string columns that hold running text (three words or more on average in the first rows)."""
    head = dataset.with_format(None).select(range(min(100, len(dataset))))
    strings = [
        name for name, feature in dataset.features.items() if feature in (Value("string"), Value("large_string"))
    ]
    return [name for name in strings if np.mean([len(str(text).split()) for text in head[name]]) >= 3]


def with_label_names(dataset: Dataset) -> Dataset:
    """Replaces the numbers of `ClassLabel` columns by their names."""
    labels = {name: feature for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)}
    columns = dataset.to_dict()
    for name, feature in labels.items():
        columns[name] = [None if value is None or value < 0 else feature.int2str(value) for value in columns[name]]
    features = Features({**dataset.features, **{name: Value("string") for name in labels}})
    return Dataset.from_dict(columns, features=features)


def set_apart(dataset: Dataset) -> Dataset:
    """Append underscores to the names of columns that are called like one of ours, and show all columns."""
    there, names = set(dataset.column_names), {}
    for name in there & set(COMPUTED):
        names[name] = f"{name}_"
        while names[name] in there:
            names[name] += "_"
    return dataset.with_format(None).rename_columns(names)


def prefixed(dataset: Dataset, prefix: str) -> Dataset:
    """Put a prefix before the names of all columns."""
    return dataset.rename_columns({name: f"{prefix}{name}" for name in dataset.column_names})
