"""A second data set of a recipe, whose examples have slices, such as HANS with its heuristics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from datasets import Dataset

from hf_fastif.errors import InfluenceError
from hf_fastif.training.datasets import DataArguments


@dataclass
class SlicedArguments:
    """Which data set with slices a recipe reads beside the first; it has the same labels and columns of text."""

    sliced_name: str = field(default="HANS", metadata={"help": "What the data set with slices is called."})
    sliced_dataset_name: str | None = field(default=None, metadata={"help": "It on the Hub, or a local folder of it."})
    sliced_train_split: str = field(default="train", metadata={"help": "Its split of training examples."})
    sliced_test_split: str = field(default="validation", metadata={"help": "Its split that queries are taken from."})
    sliced_train_file: str | None = field(default=None, metadata={"help": "Or its training examples as a file."})
    sliced_validation_file: str | None = field(default=None, metadata={"help": "And the file of its queries."})
    sliced_train_where: list[str] | None = field(
        default=None, metadata={"help": "Only training examples with these values, as in train_where."}
    )
    sliced_validation_where: list[str] | None = field(
        default=None, metadata={"help": "Only queries with these values."}
    )
    slice_column: str = field(
        default="heuristic", metadata={"help": "Column that names the slice of a query, and the circle of an example."}
    )

    @property
    def is_given(self) -> bool:
        """Whether there is such a data set."""
        return bool(self.sliced_dataset_name or self.sliced_train_file or self.sliced_validation_file)


def sliced_data(sliced: SlicedArguments, data: DataArguments) -> DataArguments:
    """How the data set with slices is read: as the first one, from other places; if it is none, other rows of it.

    All of its training examples are taken: often they are in the order of the slices, and the first ones lack some.
    """
    data = replace(data, max_train_examples=None)
    where = {"train_where": sliced.sliced_train_where, "validation_where": sliced.sliced_validation_where}
    splits = {"dataset_train_split": sliced.sliced_train_split, "dataset_test_split": sliced.sliced_test_split}
    if not sliced.is_given:
        return replace(data, **splits, **where)
    return replace(
        data,
        dataset_name=sliced.sliced_dataset_name,
        dataset_config=None,
        train_file=sliced.sliced_train_file,
        validation_file=sliced.sliced_validation_file,
        **splits,
        **where,
    )


def slices_of(name: str, examples: Dataset, column: str, wanted: Sequence[str] | None = None) -> dict[str, Dataset]:
    """The examples by the values of a column, or by some of them; without that column they are one slice.

    Raises:
        ValueError: If no example has a value that is wanted.
    """
    if column not in examples.column_names:
        return {name: examples}
    values = np.array([str(value) for value in examples[column]])
    there = np.unique(values).tolist()
    if unknown := set(wanted or ()) - set(there):
        raise InfluenceError(f"slices: {', '.join(sorted(unknown))} is not among the values of {column!r}: {there}.")
    return {f"{name}, {value}": examples.select(np.flatnonzero(values == value)) for value in wanted or there}
