"""Check and prepare queries and candidates, once per call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset

from hf_fastif.curvature import Sketch, left_out
from hf_fastif.data import ExampleBatches, hexdigest
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import DatasetSweep, SingleProcess, shard_for_rank
from hf_fastif.influence.predictions import Predictions, loss_gradients, predict, sharded_gradients
from hf_fastif.model import Batch, Objective
from hf_fastif.scoring import less_is_better


@dataclass(frozen=True)
class QuerySet:
    """Examples whose predictions are attributed, either one query per example or a single query.

    Attributes:
        dataset (`datasets.Dataset`): The examples, tokenized like the training set, with labels.
        reduce (`"mean"`, *optional*): Whether to combine all examples, which are then called anchors, into a single
            query: their mean loss, or the mean of their measure. By default, each example is a query.
        rather_than (`datasets.Dataset`, *optional*): As many examples to contrast with, such as the same prompts with
            other completions. What is attributed is then the difference of the two losses, or measures: why a model
            prefers each completion to its alternative.

    Example:
        ```python
        trainer.find_influential(QuerySet(anchors, reduce="mean"))
        trainer.find_influential(QuerySet(paris, rather_than=london))
        ```
    """

    dataset: Dataset
    reduce: Literal["mean"] | None = None
    rather_than: Dataset | None = None

    def __post_init__(self):
        if self.reduce not in (None, "mean"):
            raise InfluenceError(f"reduce={self.reduce!r}: give 'mean', or None for one query per example.")
        if self.rather_than is not None and len(self.rather_than) != len(self.dataset):
            raise InfluenceError(
                f"rather_than has {len(self.rather_than)} rows; give one for each of the {len(self.dataset)} examples."
            )

    @classmethod
    def of(cls, examples: Dataset | QuerySet) -> QuerySet:
        """Return a query set unchanged, and a dataset as a query set with one query per example."""
        return examples if isinstance(examples, QuerySet) else cls(examples)


@dataclass(frozen=True)
class Queries:
    """Queries that are ready to be solved for.

    Attributes:
        query_set (`QuerySet`): The examples and their reduction.
        batches (`ExampleBatches`): The examples as the model sees them.
        alternatives (`ExampleBatches`, *optional*): The examples that they are contrasted with.
        objective (`Objective`): The function to attribute: the loss, or a measure instead.
        loss (`Objective`): The loss.
        sweep (`DatasetSweep`): Divides a pass over the examples into batches and processes.
        group_size (`int`): The number of queries that are solved and scored together.
    """

    query_set: QuerySet
    batches: ExampleBatches
    alternatives: ExampleBatches | None
    objective: Objective
    loss: Objective
    sweep: DatasetSweep
    group_size: int

    @property
    def as_one(self) -> bool:
        """Whether all examples form a single query."""
        return self.query_set.reduce is not None

    def __len__(self) -> int:
        return 1 if self.as_one else len(self.batches)

    @property
    def measured(self) -> str:
        """What is attributed, in words."""
        what = self.objective.measured
        return what if self.alternatives is None else f"{what} minus that of the alternative"

    @property
    def identity(self) -> str:
        """A digest of everything that results depend on: examples, reduction and measure."""
        alternatives = None if self.alternatives is None else self.alternatives.digest
        return hexdigest(
            [self.batches.digest, alternatives, self.query_set.reduce, self.measured, self.objective.measure_digest]
        )

    @cached_property
    def row_digests(self) -> tuple[str, ...]:
        """A digest of the model's input for each query."""
        digests = self.batches.row_digests
        if self.alternatives is not None:
            pairs = zip(digests, self.alternatives.row_digests, strict=True)
            digests = tuple(hexdigest(pair) for pair in pairs)
        return (hexdigest(digests),) if self.as_one else digests

    @cached_property
    def predictions(self) -> Predictions:
        """Predictions and losses of the examples.

        Raises:
            InfluenceError: If the loss of an example is NaN or infinite.
        """
        return predict(self.loss, self.batches, self.sweep)

    def check_losses(self) -> None:
        """Refuse queries whose loss is NaN or infinite, before the long computation.

        Raises:
            InfluenceError: If a loss is not finite; the message names the row.
        """
        self.predictions.check_labels("examples")
        if self.alternatives is not None:
            predict(self.loss, self.alternatives, self.sweep, "rather_than").check_labels("rather_than")

    def attributed(self) -> np.ndarray:
        """Compute what is attributed, for each example (Q,), with the parameters that the model has at the moment.

        It is the loss, or the measure in its place, or their difference from those of the alternatives.
        """
        values = predict(self.objective, self.batches, self.sweep).losses
        if self.alternatives is not None:
            values = values - predict(self.objective, self.alternatives, self.sweep, "rather_than").losses
        return values if less_is_better(self.measured) else -values  # the objective is minus the measure

    def groups(self) -> list[range]:
        """Return the positions of the queries of each group."""
        return groups_of(len(self), self.group_size)

    def gradients(self, numbers: range, accelerator: Accelerator | SingleProcess) -> torch.Tensor:
        """Compute the gradients (Q, P) of the queries at these positions; for anchors their mean (1, P)."""
        gradients = self._gradients(self.batches, numbers, accelerator)
        if self.alternatives is not None:
            gradients -= self._gradients(self.alternatives, numbers, accelerator)
        self._check_finite(gradients, numbers)
        return gradients

    def coordinates(self, sketch: Sketch) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the gradients of the queries in a sketch.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Their coordinates (Q, r), for anchors the mean (1, r); and the norm
                (Q,) of the part outside of the sketch, relative to that of the gradients (for anchors and contrasts,
                over all gradients that are combined).
        """
        coordinates, inside, squares = self._coordinates(self.batches, sketch)
        if self.alternatives is not None:
            others, *sums = self._coordinates(self.alternatives, sketch)
            coordinates, inside, squares = coordinates - others, inside + sums[0], squares + sums[1]
        self._check_finite(coordinates, range(len(self)))
        return coordinates, left_out(inside, squares)

    def _coordinates(self, examples: ExampleBatches, sketch: Sketch) -> tuple[torch.Tensor, ...]:
        """Return the coordinates (Q, r), their squared norms (Q,) and those of the gradients (Q,), as in `Queries`."""

        def compute(batch: Batch) -> torch.Tensor:
            coordinates, squares = sketch.of_losses_and_norms(self.objective, batch)
            return torch.cat([coordinates, coordinates.square().sum(dim=1, keepdim=True), squares[:, None]], dim=1)

        values = self.sweep.over(examples, np.arange(len(examples)), sketch.size + 2, compute, "Queries")
        joined = torch.from_numpy(values).to(self.sweep.accelerator.device)
        if self.as_one:
            joined = joined.mean(dim=0, keepdim=True)
        return joined[:, :-2], joined[:, -2], joined[:, -1]

    def _check_finite(self, values: torch.Tensor, numbers: range) -> None:
        if not torch.isfinite(values).all():
            raise InfluenceError(
                f"{self.measured}: its gradient holds NaN or infinite numbers for one of the queries {numbers.start} "
                f"to {numbers.stop - 1}; look at their texts and labels, and at whether the measure divides by 0."
            )

    def _gradients(
        self, examples: ExampleBatches, numbers: range, accelerator: Accelerator | SingleProcess
    ) -> torch.Tensor:
        if not self.as_one:
            return sharded_gradients(self.objective, examples, numbers, accelerator)
        count, space = len(examples), self.objective.space
        total = space.zeros(1, space.size)
        for rows in shard_for_rank(groups_of(count, self.group_size), accelerator):
            total += loss_gradients(self.objective, examples, rows).sum(dim=0, keepdim=True)
        return accelerator.reduce(total, "sum") / count


@dataclass(frozen=True)
class CandidatePool:
    """The examples to score.

    Attributes:
        name (`str`): The argument that they were given as, for messages.
        dataset (`datasets.Dataset`): The examples with all columns.
        batches (`ExampleBatches`): The examples as the model sees them.
    """

    name: str
    dataset: Dataset
    batches: ExampleBatches

    @property
    def digest(self) -> str:
        """A digest of the model's inputs."""
        return self.batches.digest


def groups_of(count: int, size: int) -> list[range]:
    """Split the positions from 0 to `count` into ranges of `size`; the last one may be shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
