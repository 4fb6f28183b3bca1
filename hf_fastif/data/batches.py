"""Serve rows of a dataset as padded batches on the model's device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset

from hf_fastif.data.digests import SAMPLED_ROWS, batch_digest, hexdigest, stored_digest, stored_rows


class States(Protocol):
    """Precomputed states of dataset rows, such as the outputs of frozen layers."""

    def add_to(self, batch: dict[str, torch.Tensor], rows: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """Return the batch of some rows with their states added."""
        ...


class ExampleBatches:
    """Rows of a dataset as the model sees them.

    Each batch is padded to its longest row.

    Args:
        dataset (`datasets.Dataset`): The rows, with only the columns that the model and the collator take.
        collate (`Callable`, *optional*): The trainer's data collator. None for rows that are never batched.
        prepare (`Callable`): Moves a collated batch to the model's device.
        stored_digests (`dict`, *optional*): A cache of digests of stored rows, by the fingerprint of their dataset.
            Missing digests are added to it.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None,
        prepare: Callable[[dict[str, Any]], dict[str, torch.Tensor]],
        stored_digests: dict[str, str] | None = None,
    ):
        self.dataset = dataset
        self.collate = collate
        self.prepare = prepare
        self.stored_digests = {} if stored_digests is None else stored_digests
        self.states: States | None = None  # outputs of frozen layers, if they fit into memory

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, rows: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """Return the batch of the given rows, in their order."""
        batch = self.prepare(self._collated(rows))
        return batch if self.states is None else self.states.add_to(batch, rows)

    def grouped_by_length(self, rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """Cut rows into batches of similar length, which need little padding.

        The longest rows come first, so that a batch that does not fit into memory fails at once and not at the end.
        """
        return [rows[places] for places in self.places_by_length(rows, batch_size)]

    def places_by_length(self, rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """Cut rows into the same batches, as positions in `rows`: rows may occur twice."""
        places = np.arange(len(rows))
        if self._lengths is not None:
            places = np.argsort(-self._lengths[rows], kind="stable")
        return [places[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    @cached_property
    def digest(self) -> str:
        """Return a short digest of what the model sees.

        It covers the stored rows in their order and the batch of a sample of them. The batch shows the effect of
        transforms and collators, which the stored rows do not.
        """
        return hexdigest([self._stored_digest, self._sample_digest()])

    @cached_property
    def training_digest(self) -> str:
        """Return the digest that a checkpoint records.

        It covers the stored rows alone where a transform or collator is random.
        """
        sample = self._sample_digest()
        return hexdigest([self._stored_digest, sample if sample == self._sample_digest() else ""])

    def is_trained_on(self, training_digest: str) -> bool:
        """Tell whether a checkpoint that records this digest was trained on these rows."""
        return training_digest in (self.digest, hexdigest([self._stored_digest, ""]))

    def holds(self, other: ExampleBatches) -> bool:
        """Tell whether all rows of another dataset, as they are stored, are among these rows."""
        if other._stored_digest == self._stored_digest:
            return True
        missing = set(stored_rows(other.dataset))
        for row in stored_rows(self.dataset):
            missing.discard(row)
            if not missing:
                return True
        return False

    @property
    def _stored_digest(self) -> str:
        key = self.dataset._fingerprint
        if key not in self.stored_digests:
            self.stored_digests[key] = stored_digest(self.dataset)
        return self.stored_digests[key]

    def _sample_digest(self) -> str:
        if self.collate is None:
            return ""
        return batch_digest(self._collated(np.unique(np.linspace(0, len(self) - 1, SAMPLED_ROWS).astype(int))))

    @cached_property
    def row_digests(self) -> tuple[str, ...]:
        """Return a short digest of each row, in a batch by itself."""
        return tuple(batch_digest(self._collated([row])) for row in range(len(self)))

    def _collated(self, rows: Sequence[int] | np.ndarray) -> dict[str, Any]:
        return self.collate(self.dataset.__getitems__([int(row) for row in rows]))

    @cached_property
    def _lengths(self) -> np.ndarray | None:
        if "input_ids" not in self.dataset.column_names:
            return None
        tables = self.dataset.select_columns("input_ids").with_format("arrow").iter(batch_size=10_000)
        return np.concatenate([pc.list_value_length(table["input_ids"]).to_numpy() for table in tables])
