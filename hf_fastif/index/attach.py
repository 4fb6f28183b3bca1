"""A FAISS index that lives on a `datasets.Dataset`."""

from __future__ import annotations

import copy

import faiss
import numpy as np
from datasets import Dataset


def attach_index(dataset: Dataset, features: np.ndarray, name: str) -> None:
    """Attaches an exact L2 index of `features` (N, d) to `dataset`, in place, replacing one of the same name.

    Afterwards `dataset.get_nearest_examples(name, query, k)` works; `datasets` documents what keeps an index and
    what drops it.
    """
    if name in dataset.list_indexes():
        dataset.drop_index(name)
    dataset.add_faiss_index_from_external_arrays(features, index_name=name, metric_type=faiss.METRIC_L2)


def search_index(dataset: Dataset, name: str, queries: np.ndarray, k: int) -> np.ndarray:
    """The rows (Q, k) of `dataset` whose features are nearest to each query (Q, d), nearest first."""
    return np.asarray(dataset.search_batch(name, queries, k).total_indices, dtype=np.int64)


def without_indexes(dataset: Dataset) -> Dataset:
    """A view of the same rows that carries no index.

    `Trainer` drops columns whenever it makes a dataloader, and `datasets` copies every index when columns are
    dropped (and fails on one that lives on a GPU); this view spares both. The dataset itself keeps its index.
    """
    view = copy.copy(dataset)
    view._indexes = {}
    return view
