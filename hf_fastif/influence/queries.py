"""Queries: what influence is asked about, checked and prepared once per call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from accelerate import Accelerator
from datasets import Dataset

from hf_fastif.data import ExampleBatches, hexdigest
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import DatasetSweep, SingleProcess, shard_for_rank
from hf_fastif.influence.predictions import Predictions, loss_gradients, predict, sharded_gradients
from hf_fastif.model import Objective


@dataclass(frozen=True)
class QuerySet:
    """Examples to ask about, and whether each is a query of its own.

    Attributes:
        dataset (`datasets.Dataset`): The examples, tokenized as the training set is, with labels.
        reduce (`"mean"`, *optional*): Makes one query of all examples, which are called anchors: their mean loss, or
            the mean of their measure. Unless given, each example is a query.

    Example:
        ```python
        trainer.find_influential(QuerySet(anchors, reduce="mean"))
        ```
    """

    dataset: Dataset
    reduce: Literal["mean"] | None = None

    def __post_init__(self):
        if self.reduce not in (None, "mean"):
            raise InfluenceError(f"reduce={self.reduce!r}: give 'mean', or None for a query an example.")

    @classmethod
    def of(cls, examples: Dataset | QuerySet) -> QuerySet:
        """Return a query set as it is, and a dataset as one in which every example is a query."""
        return examples if isinstance(examples, QuerySet) else cls(examples)


@dataclass(frozen=True)
class Queries:
    """Queries that are ready to be solved for.

    Attributes:
        query_set (`QuerySet`): What the user gave.
        batches (`ExampleBatches`): Its examples as the model sees them.
        objective (`Objective`): What is attributed: the loss, or a measure in its place.
        loss (`Objective`): The loss.
        sweep (`DatasetSweep`): How passes over the examples are cut up.
        group_size (`int`): How many queries are solved and scored together.
    """

    query_set: QuerySet
    batches: ExampleBatches
    objective: Objective
    loss: Objective
    sweep: DatasetSweep
    group_size: int

    @property
    def as_one(self) -> bool:
        """Tell whether all examples are one query."""
        return self.query_set.reduce is not None

    def __len__(self) -> int:
        return 1 if self.as_one else len(self.batches)

    @property
    def identity(self) -> str:
        """What the answers depend on: examples, reduction and measure."""
        return hexdigest([self.batches.digest, self.query_set.reduce, self.objective.measured])

    @cached_property
    def row_digests(self) -> tuple[str, ...]:
        """A digest of what the model sees of each query."""
        digests = self.batches.row_digests
        return (hexdigest(digests),) if self.as_one else digests

    @cached_property
    def predictions(self) -> Predictions:
        """What the model says about the examples.

        Raises:
            InfluenceError: If the loss of an example is NaN or infinite.
        """
        return predict(self.loss, self.batches, self.sweep)

    def check_losses(self) -> None:
        """Refuse queries whose loss is NaN or infinite, now and not in an hour."""
        _ = self.predictions

    def groups(self) -> list[range]:
        """Return the numbers of the queries of each group."""
        return groups_of(len(self), self.group_size)

    def gradients(self, numbers: range, accelerator: Accelerator | SingleProcess) -> torch.Tensor:
        """Compute the gradient (Q, P) of each of some queries; of anchors (1, P), the mean."""
        if not self.as_one:
            return sharded_gradients(self.objective, self.batches, numbers, accelerator)
        count, space = len(self.batches), self.objective.space
        total = space.zeros(1, space.size)
        for rows in shard_for_rank(groups_of(count, self.group_size), accelerator):
            total += loss_gradients(self.objective, self.batches, rows).sum(dim=0, keepdim=True)
        return accelerator.reduce(total, "sum") / count


@dataclass(frozen=True)
class CandidatePool:
    """Training examples that are scored.

    Attributes:
        name (`str`): The argument that they come from, for messages.
        dataset (`datasets.Dataset`): The examples with all columns.
        batches (`ExampleBatches`): The examples as the model sees them.
    """

    name: str
    dataset: Dataset
    batches: ExampleBatches

    @property
    def digest(self) -> str:
        """A digest of what the model sees of them."""
        return self.batches.digest


def groups_of(count: int, size: int) -> list[range]:
    """Cut numbers from 0 to `count` into ranges of `size`; the last one may be shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
