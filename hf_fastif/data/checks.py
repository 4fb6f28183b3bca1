"""Refuse datasets and row numbers that influence cannot be computed for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_fastif.errors import InfluenceError


INSTEAD = {  # what to give, by the type that was given: the first match counts, so subclasses come first
    DatasetDict: "give one of its splits, as in dataset[{first!r}] (there are {splits})",
    IterableDatasetDict: "load the dataset without streaming=True, and give one of its splits",
    IterableDataset: (
        "its rows have no positions; load the dataset without streaming=True, or convert it with "
        "datasets.Dataset.from_generator"
    ),
    Mapping: "for one row give dataset.select([0]) instead of dataset[0], for several rows dataset.select(range(3))",
    str: "create one with datasets.Dataset.from_list([{{'text': ..., 'label': ...}}]), and tokenize it with map",
    list: "create one from the rows with datasets.Dataset.from_list, and tokenize it with map",
    object: "create one with datasets.Dataset.from_list, from_pandas or from_generator",
}


def check_dataset(name: str, dataset: Any) -> None:
    """Refuse anything but a map-style `datasets.Dataset` with at least one row.

    Raises:
        InfluenceError: Naming the argument and how to get a dataset from what was given.
    """
    if not isinstance(dataset, Dataset):
        raise InfluenceError(
            f"{name} is a {type(dataset).__name__}; influence needs a datasets.Dataset, whose rows have positions: "
            f"{_instead(name, dataset)}."
        )
    if len(dataset) == 0:
        raise InfluenceError(f"{name} has no rows; give at least one example.")


def _instead(name: str, given: Any) -> str:
    """Say what to give instead of something that is not a dataset."""
    if name == "train_dataset" and given is None:
        return "create the trainer with train_dataset=..., the data that the model was trained on"
    fix = next(fix for kind, fix in INSTEAD.items() if isinstance(given, kind))
    splits = list(given) if isinstance(given, DatasetDict) else [""]
    return fix.format(first=splits[0], splits=", ".join(splits))


def check_train_dataset(dataset: Any) -> None:
    """Refuse a training set whose rows have no positions, before training starts.

    Raises:
        InfluenceError: Naming how to get a map-style dataset.
    """
    if isinstance(dataset, DatasetDict | IterableDatasetDict | IterableDataset | Mapping | str):
        check_dataset("train_dataset", dataset)


def check_rows(name: str, rows: Sequence[int], size: int) -> None:
    """Refuse row numbers outside a dataset of `size` rows.

    Raises:
        InfluenceError: Naming the numbers that are outside.

    Example:

    ```python
    check_rows("query_rows", [0, 7], size=8)  # passes; [8] and [-1] raise an InfluenceError
    ```
    """
    outside = [row for row in rows if not 0 <= row < size]
    if outside:
        raise InfluenceError(f"{name}={outside}: there are {size} rows; give 0 to {size - 1}.")
