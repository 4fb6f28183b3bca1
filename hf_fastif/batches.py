"""Rows of a dataset as padded batches on the model's device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset


class States(Protocol):
    """Adds what is kept of some rows to their batch."""

    def add_to(self, batch: dict[str, torch.Tensor], rows: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """The batch of some rows of the dataset, with what is kept of them."""
        ...


class ExampleBatches:
    """Serves batches of chosen rows of a dataset, each padded to its own longest row.

    Args:
        dataset (`datasets.Dataset`): Holds the columns that the model and the collator take, and no others.
        collate (`Callable`): The trainer's data collator.
        prepare (`Callable`): Moves a collated batch to the model's device.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        prepare: Callable[[dict[str, Any]], dict[str, torch.Tensor]],
    ):
        self.dataset = dataset
        self.collate = collate
        self.prepare = prepare
        self.states: States | None = None  # what frozen layers made of the rows, if that is kept

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, rows: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """The batch made of the given rows, in their order."""
        examples = self.dataset.__getitems__([int(row) for row in rows])
        batch = self.prepare(self.collate(examples))
        return batch if self.states is None else self.states.add_to(batch, rows)

    def grouped_by_length(self, rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """Cuts rows into batches of similar length, longest first, so that little is spent on padding.

        The longest come first so that a batch that does not fit into memory fails at once and not at the end.
        """
        return [rows[places] for places in self.places_by_length(rows, batch_size)]

    def places_by_length(self, rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """The same as places in `rows`, for rows that may occur twice."""
        places = np.arange(len(rows))
        if self._lengths is not None:
            places = np.argsort(-self._lengths[rows], kind="stable")
        return [places[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    @cached_property
    def digest(self) -> str:
        """A short digest of the rows and their order, however the dataset was loaded."""
        found = hashlib.blake2b(digest_size=8)
        for table in self.dataset.with_format("arrow").iter(batch_size=10_000):
            for name in sorted(table.column_names):
                found.update(name.encode())
                found.update(_content(table[name]))
        return found.hexdigest()

    @cached_property
    def _lengths(self) -> np.ndarray | None:
        if "input_ids" not in self.dataset.column_names:
            return None
        tables = self.dataset.select_columns("input_ids").with_format("arrow").iter(batch_size=10_000)
        return np.concatenate([pc.list_value_length(table["input_ids"]).to_numpy() for table in tables])


def _content(column: pa.ChunkedArray) -> bytes:
    """The values of a column; 32 or 64 bits, or chunks of any size, make no difference."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _content(pc.list_value_length(column)) + _content(pc.list_flatten(column))
    if pa.types.is_integer(kind):
        return column.to_numpy().astype(np.int64).tobytes()
    return repr(column.to_pylist()).encode()
