"""Select and rename the columns of a dataset that people can read."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value


COMPUTED = (  # columns that a result adds; a user's columns of the same names are renamed
    *("query_index", "train_index", "index", "influence", "predicted_loss_change", "percentile", "direction", "rank"),
    *("tokens", "token_influence"),
    *("prediction", "probability", "loss", "loss_at_attribution", "residual", "std_err", "ranking"),
)


def plain_columns(dataset: Dataset) -> Dataset:
    """Select the columns that people can read: strings, numbers and labels, not token ids or arrays."""
    plain = [name for name, feature in dataset.features.items() if isinstance(feature, Value | ClassLabel)]
    return dataset.select_columns(plain).with_format(None)


def text_columns(dataset: Dataset) -> list[str]:
    """List the string columns that hold prose: on average three words or more in the first 100 rows."""
    head = dataset.with_format(None).select(range(min(100, len(dataset))))
    strings = [
        name for name, feature in dataset.features.items() if feature in (Value("string"), Value("large_string"))
    ]
    return [name for name in strings if np.mean([len(str(text).split()) for text in head[name]]) >= 3]


def with_label_names(dataset: Dataset) -> Dataset:
    """Replace the numbers in `ClassLabel` columns by class names; None and negative numbers become None."""
    labels = {name: feature for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)}
    columns = dataset.to_dict()
    for name, feature in labels.items():
        columns[name] = [None if value is None or value < 0 else feature.int2str(value) for value in columns[name]]
    features = Features({**dataset.features, **{name: Value("string") for name in labels}})
    return Dataset.from_dict(columns, features=features)


def set_apart(dataset: Dataset) -> Dataset:
    """Append underscores to column names that a result uses itself, and reset the format to show all columns."""
    columns, new_names = set(dataset.column_names), {}
    for name in columns & set(COMPUTED):
        new_names[name] = f"{name}_"
        while new_names[name] in columns:
            new_names[name] += "_"
    return dataset.with_format(None).rename_columns(new_names)


def prefixed(dataset: Dataset, prefix: str) -> Dataset:
    """Put a prefix before every column name."""
    return dataset.rename_columns({name: f"{prefix}{name}" for name in dataset.column_names})
