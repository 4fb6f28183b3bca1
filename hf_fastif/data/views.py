"""Datasets without the indexes that they carry."""

from __future__ import annotations

import copy

from datasets import Dataset


def without_indexes(dataset: Dataset) -> Dataset:
    """A view of the same rows that carries no index.

    `Trainer` drops columns whenever it makes a dataloader, and `datasets` copies every index when columns are
    dropped (and fails on one that lives on a GPU); this view spares both. The dataset itself keeps its index.
    """
    view = copy.copy(dataset)
    view._indexes = {}
    return view
