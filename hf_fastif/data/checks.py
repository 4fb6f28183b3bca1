"""Refuse datasets and row numbers that cannot be worked with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_fastif.errors import InfluenceError


INSTEAD = {  # of a dataset
    DatasetDict: "give one of its splits, as in dataset[{first!r}] (there are {splits})",
    IterableDatasetDict: "load the data set without streaming=True, and give one of its splits",
    IterableDataset: (
        "its rows have no positions; load the data set without streaming=True, or make one of it with "
        "datasets.Dataset.from_generator"
    ),
    Mapping: "for one row give dataset.select([0]) and not dataset[0], for several dataset.select(range(3))",
    str: "make one with datasets.Dataset.from_list([{{'text': ..., 'label': ...}}]), and tokenize it with map",
    list: "make one of rows with datasets.Dataset.from_list, and tokenize it with map",
    object: "datasets.Dataset.from_list, from_pandas and from_generator make one",
}


def check_dataset(name: str, dataset: Any) -> None:
    """The argument `name` must be a map-style `datasets.Dataset` with rows."""
    if not isinstance(dataset, Dataset):
        raise InfluenceError(
            f"{name} is a {type(dataset).__name__}; influence needs a datasets.Dataset, whose rows have positions: "
            f"{_instead(name, dataset)}."
        )
    if len(dataset) == 0:
        raise InfluenceError(f"{name} has no rows; give at least one example.")


def _instead(name: str, given: Any) -> str:
    """Say what to give instead of something that is not a data set."""
    if name == "train_dataset" and given is None:
        return "make the trainer with train_dataset=..., the data that the model was trained on"
    fix = next(fix for kind, fix in INSTEAD.items() if isinstance(given, kind))
    splits = list(given) if isinstance(given, DatasetDict) else [""]
    return fix.format(first=splits[0], splits=", ".join(splits))


def check_train_dataset(dataset: Any) -> None:
    """Refuse a training set whose rows have no positions, before anything is trained on it."""
    if isinstance(dataset, DatasetDict | IterableDatasetDict | IterableDataset | Mapping | str):
        check_dataset("train_dataset", dataset)


def check_rows(name: str, rows: Sequence[int], size: int) -> None:
    """Row numbers must lie within the dataset that they are of."""
    outside = [row for row in rows if not 0 <= row < size]
    if outside:
        raise InfluenceError(f"{name}={outside}: there are {size} rows; give 0 to {size - 1}.")
