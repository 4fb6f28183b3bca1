"""Detach datasets from the indexes that they carry."""

from __future__ import annotations

import copy

from datasets import Dataset


def without_indexes(dataset: Dataset) -> Dataset:
    """Return a view of the same rows without their indexes; the dataset itself keeps them.

    `Trainer` drops columns whenever it creates a dataloader. `datasets` then copies every index, which is slow, and
    fails for an index on a GPU.
    """
    view = copy.copy(dataset)
    view._indexes = {}
    return view
